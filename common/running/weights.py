"""Weights as safetensors: written in one move, and checked when they are read.

    save_weights(path, own_state(model))
    load_own_state(model, load_weights(path))
    load_recogniser(recogniser, folder, place)  the weights of a finished run

Frozen weights of a pretrained model that has a name are not saved with a run, since
they can be had again under that name. Only a digest of them is saved: the section
"what a pretrained model supplies" below.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from common.errors import UserError
from common.files import write_atomically
from common.running.cache import digest
from common.running.process import Place

KEPT_FROM = 10**9  # bytes of weights from which a digest is computed once and kept [choice]
# What a configuration says of the file, and not of the model.
OF_THE_FILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    write_atomically(
        path, save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    )


def load_weights(path: Path) -> dict[str, Tensor]:
    """Raises UserError if the file is missing, cut off or not safetensors."""
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise UserError(
            f"there is no {path}: that run is not finished, go on with it by --resume."
        ) from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged ({error}): the run has to be repeated or resumed."
        ) from None
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise UserError(f"{path} holds numbers that are not finite: the run has to be repeated.")
    return weights


def average_of(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of tensors by name; whole numbers are those of the first state.

    Of adapters (see lora.py) A and B are averaged apart, and the product of two means
    is not the mean of the products. They are close for epochs of one run, whose A and B
    lie near each other. Adapters of different runs must be merged first.
    """
    mean = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            mean[name] = torch.stack([state[name] for state in states]).mean(0)
        else:
            mean[name] = first
    return mean


# ---------------------------------------------------------- what a pretrained model supplies
#
# A frozen language model of a billion weights is not saved with every run that uses it. It has a
# buffer named `supplied` instead: 17 small whole numbers, the version of this form and a digest of
# all tensors in the model's files and of its config.json (the type in which the weights are used
# does not count). `own_state` takes that buffer as a sign: it leaves out the part's frozen weights
# and keeps the buffer. When the run is loaded, the pretrained model is loaded by its name first,
# and `load_own_state` compares its digest with the stored one.

FORM_OF_MARKS = 2  # the first form, without this number, covered a part of the model only


def mark_supplied(model: nn.Module, digits: str) -> nn.Module:
    """The model, frozen, with its buffer `supplied`. digits: a hexadecimal digest."""
    mark = [FORM_OF_MARKS, *bytes.fromhex(digits)]
    model.register_buffer("supplied", torch.tensor(mark, dtype=torch.uint8))
    return model.requires_grad_(False)


def forget_supplied(model: nn.Module) -> None:
    """Takes the mark away, so that all weights of the model are saved with the run."""
    if hasattr(model, "supplied"):
        del model.supplied


def own_state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model that are saved with a run, tied ones once.

    A part with the mark `supplied` is a named pretrained model: its frozen parameters
    and its other buffers are left out.
    """
    elsewhere = set()
    for part in module.modules():
        if hasattr(part, "supplied"):
            frozen = (p for p in part.parameters() if not p.requires_grad)
            elsewhere |= {id(x) for x in [*frozen, *part.buffers()] if x is not part.supplied}
    kept = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in elsewhere:
            kept[name] = tensor.detach()
            elsewhere.add(id(tensor))
    return kept


def load_own_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Puts saved tensors back, see `own_state`.

    Raises UserError if a part was trained beside another pretrained model, and
    RuntimeError if the tensors are those of another model.
    """
    own = own_state(module)
    if set(own) != set(state):
        raise RuntimeError("these are the weights of another model")
    for name, mark in own.items():
        if name.endswith("supplied"):
            check_mark(mark.cpu(), state[name].cpu())
    module.load_state_dict(state, strict=False)


def check_mark(here: Tensor, stored: Tensor) -> None:
    """Compares two buffers `supplied`. Raises UserError if the models differ."""
    if here.shape != stored.shape:
        raise UserError(
            "these weights know their pretrained model by a mark of an older version, which did "
            "not cover all of it: train the run anew."
        )
    if not torch.equal(here, stored):
        raise UserError(
            "these weights belong to another pretrained model than the one named, or that one has "
            "changed since: name theirs, or bring it back."
        )


def load_recogniser(recogniser: nn.Module, folder: str | Path, place: Place) -> nn.Module:
    """Puts the weights of a finished run into a recogniser built from its options.

    Raises UserError.
    """
    try:
        load_own_state(recogniser, load_weights(Path(folder) / "model.safetensors"))
    except RuntimeError:
        raise UserError(
            f"the weights in {folder} do not fit its config.json: was it edited?"
        ) from None
    return recogniser.to(place.device).eval()


# ------------------------------------------------------------------- models in folders


def weight_files(folder: Path, flag: str) -> list[Path]:
    """The safetensors of a model's folder: model.safetensors, or what its index names.

    Raises UserError if one is missing, and where the index is damaged or names a
    file outside of the folder.
    """
    names = ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not (folder / names[0]).exists() and index.exists():
        names = _names_in(index, flag)
    for name in names:
        if not (folder / name).exists():
            binary = " (weights as .bin are not read, for they may run code)"
            binary = binary if list(folder.glob("*.bin")) else ""
            raise UserError(
                f"{flag} {folder} lacks {name}{binary}: copy or download it whole, as safetensors."
            )
    return [folder / name for name in names]


def _names_in(index: Path, flag: str) -> list[str]:
    """The files that an index names, in alphabetical order. Raises UserError."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [PurePosixPath(name) for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{flag}: {index} is no index of weights: copy or download it again."
        ) from None
    for path in paths:
        if path.is_absolute() or ".." in path.parts:
            what = f"{index} names {path}, which is outside of that folder"
            raise UserError(f"{flag}: {what}: give a folder that holds its weights itself.")
    if not names:
        raise UserError(f"{flag}: {index} names no weights: copy or download it again.")
    return names


def digest_of_model(config: dict, files: list[Path], root: str, beginning: str = "") -> str:
    """32 hexadecimal digits that change with anything that makes the model what it is.

    config: its whole configuration, whose strings and nested values count too. files:
    its weights, see `digest_of_weights`, which `beginning` is for. root: where the
    digest of large weights is kept. Not counted is what says nothing of the model:
    OF_THE_FILE, and the type in which the weights are used.
    """
    config = {name: value for name, value in config.items() if name not in OF_THE_FILE}
    size = sum(file.stat().st_size for file in files)
    if size < KEPT_FROM:
        weights = digest_of_weights(files, beginning)
    else:
        weights = kept_digest_of_weights(files, beginning, root)
    return digest(json.dumps(config, sort_keys=True), weights)


def digest_of_weights(files: list[Path], beginning: str = "") -> str:
    """The digest of all tensors in these files: their names, types, shapes and numbers.

    How the tensors are spread over files does not matter. beginning: only the tensors
    whose names begin so. Raises UserError if a file is damaged.
    """
    state = hashlib.blake2b(digest_size=16)
    found = []
    for file in files:
        try:
            with safe_open(file, "pt") as weights:
                names = list(weights.keys())
                found += [(name, file) for name in names if name.startswith(beginning)]
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from None
    for name, file in sorted(found):
        try:
            with safe_open(file, "pt") as weights:
                add_tensor(state, name, weights.get_tensor(name))
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from None
    return state.hexdigest()


def add_tensor(state: hashlib.blake2b, name: str, tensor: Tensor) -> None:
    """Makes a digest depend on a tensor: on its name, type, shape and numbers."""
    state.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
    state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def digest_in_memory(model: nn.Module) -> str:
    """The digest of a transformers model in memory: its configuration, all tensors."""
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        add_tensor(state, name, tensor)
    config = model.config.to_dict()
    config = {name: value for name, value in config.items() if name not in OF_THE_FILE}
    return digest(json.dumps(config, sort_keys=True, default=str), state.hexdigest())


def kept_digest_of_weights(files: list[Path], beginning: str, root: str) -> str:
    """The digest of `digest_of_weights`, computed once and kept in ROOT/digests.

    It is kept beside the files' sizes and times, and is computed again where one of
    those has changed.
    """
    stats = [(file.name, file.stat()) for file in files]
    known = [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in stats]
    where = digest(str(files[0].parent.resolve()), beginning)
    kept = Path(os.path.expanduser(root)) / "digests" / f"{where}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        entry = json.loads(kept.read_text(encoding="utf-8"))
        if entry["files"] == known:
            return str(entry["digest"])
    found = digest_of_weights(files, beginning)
    with suppress(OSError, UserError):  # where nothing can be kept, it is computed every time
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps({"files": known, "digest": found}) + "\n")
    return found


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} is damaged ({error}): copy or download it again.")
