"""Hugging Face models and tokenizers by name or folder, each error one clear sentence.

    find("bert-base-uncased", "--teacher", root)  a copy in the cache, or from the hub
    find("my/bert", "--teacher", root)            the folder itself
    find("demo/bert-b", "--teacher", root)        ROOT/demo/bert-b, built on first use

Local files come first, and the network is asked only if it is needed. Language models
for beam search are in beam_models.py.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from common import bert
from common.errors import UserError, note
from common.running.process import Place, quiet_bars
from common.running.weights import digest_of_model, mark_supplied, weight_files
from common.text import Pieces, SentencePiece

# Weights as safetensors only: nothing that a download could execute.
PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors"]
PREPROCESSOR = ("preprocessor_config.json", "processor_config.json")  # where do_normalize stands


def resolve(name: str, flag: str, tokenizer_only: bool = False) -> str:
    """The local folder of a model named on the hub, or `name` itself if it is a folder.

    flag: the option that names it, for the error message. Raises UserError if the model
    is neither here nor can be fetched.
    """
    if os.path.isdir(name):
        return name
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [p for p in PATTERNS if not (tokenizer_only and p == "*.safetensors")]
    files = "config.json, its tokenizer files and (for a model) model.safetensors"
    instead = f"give {flag} a local folder with {files}."
    try:
        return snapshot_download(name, allow_patterns=patterns, local_files_only=True)
    except HFValidationError:
        what = f"{flag} {name}: no such folder, and not the name of a model"
        raise UserError(f"{what}: {instead}") from None
    except LocalEntryNotFoundError:
        pass
    hub = urlsplit(constants.ENDPOINT)
    try:
        if not getproxies():  # a quick question: the library alone would retry for half a minute
            socket.create_connection((hub.hostname, hub.port or 443), timeout=3).close()
        return snapshot_download(name, allow_patterns=patterns)
    except (OSError, HfHubHTTPError) as error:
        reason = f"{hub.hostname} did not give it ({type(error).__name__})"
        what = f"{flag} {name} is not in the local cache, and {reason}"
        raise UserError(f"{what}: {instead}") from None


def find(name: str, flag: str, root: str, tokenizer_only: bool = False) -> str:
    """The local folder of a model: as `resolve`, and for models of the demo worlds.

    demo, demo-smoke: that world's bert-a; demo/bert-b, demo/lm: another of its models;
    demo-mls, demo-mls-smoke: lm-m. They are built in ROOT on first use.

    Raises UserError.
    """
    if not name.startswith("demo") or os.path.isdir(name):
        return resolve(name, flag, tokenizer_only)
    from common.demo import models

    world, _, model = name.partition("/")
    if world not in models.WORLDS:
        return resolve(name, flag, tokenizer_only)
    known = models.WORLDS[world].names
    if model and model not in known:
        raise UserError(f"{flag} {name}: the demo world has {', '.join(known)}.")
    return str(models.find(world, model, Path(os.path.expanduser(root)), tokenizer_only))


def load_pieces(name: str, flag: str, root: str):
    """A pretrained tokenizer that also tells which characters each piece covers.

    name: see `find`. Raises UserError.
    """
    from transformers import AutoTokenizer

    folder = find(name, flag, root, tokenizer_only=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # its type depends on which file is missing, cut off or wrong
        raise UserError(f"{flag} {name} holds no tokenizer ({first_line(error)}).") from None
    # Without the file of its vocabulary it has its special tokens alone.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        advice = "copy its tokenizer's files (vocab.txt, ...) there too"
        raise UserError(f"{flag} {name} has no vocabulary: {advice}.")
    if not tokenizer.is_fast:
        what = "has a tokenizer that cannot tell where its pieces stand"
        raise UserError(f"{flag} {name} {what}: give another model.")
    return tokenizer


def load_text(name: str, flag: str, root: str) -> Pieces | SentencePiece:
    """The tokenizer of a causal language model, in the form that text.py gives it.

    Some models, such as rinna's, come with SentencePiece's own file alone. What
    transformers makes of that file puts symbols before the text and has no bytes, so we
    read the file ourselves. name: see `find`. Raises UserError.
    """
    folder = Path(find(name, flag, root, tokenizer_only=True))
    if not (folder / "spiece.model").exists() or (folder / "tokenizer.json").exists():
        return Pieces(load_pieces(name, flag, root))
    try:
        return SentencePiece((folder / "spiece.model").read_bytes())
    except (OSError, RuntimeError) as error:
        raise UserError(f"{flag} {name} holds no tokenizer ({first_line(error)}).") from None


def load_vocabulary(name: str, flag: str, root: str) -> list[str]:
    """The pieces of a pretrained tokenizer in the order of their ids.

    name: see `find`. Raises UserError.
    """
    vocabulary = load_pieces(name, flag, root).get_vocab()
    return sorted(vocabulary, key=vocabulary.get)


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_model(
    auto_class: type,
    name: str,
    flag: str,
    root: str,
    dtype: torch.dtype = torch.float32,
    **more: Any,
) -> nn.Module:
    """A frozen pretrained model in evaluation mode.

    auto_class: the class of transformers, such as AutoModelForMaskedLM, and more: its
    options. name: see `find`. The configuration of a HuBERT gets `do_normalize`, see
    `asks_for_normalised`.

    Raises UserError if the folder holds no such model, or one without its head (which
    would be filled with noise), or if its index names weights outside of the folder.
    """
    quiet_bars()
    folder = find(name, flag, root)
    if os.path.exists(os.path.join(folder, "model.safetensors.index.json")):
        weight_files(Path(folder), f"{flag} {name}")
    try:
        model, loaded = auto_class.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
            **more,
        )
    except Exception as error:  # its type depends on which file is missing, cut off or wrong
        what = f"{flag} {name} holds no model of that kind, or not all of it"
        raise UserError(f"{what} ({first_line(error)}).") from None
    if loaded["missing_keys"]:
        lacking = sorted(loaded["missing_keys"])[0]
        what = f"{flag} {name} lacks weights ({lacking}, …)"
        raise UserError(f"{what}: give a model saved with its head.")
    if model.config.model_type == "hubert":
        model.config.do_normalize = asks_for_normalised(Path(folder), f"{flag} {name}")
    return model.eval().requires_grad_(False)


def load_hubert(name: str, flag: str, root: str, place: Place) -> nn.Module:
    """A pretrained HuBERT to be trained, in fp32; its configuration has `do_normalize`.

    name: see `find`. Raises UserError.
    """
    from transformers import HubertModel

    model = load_model(HubertModel, name, flag, root).requires_grad_(True)
    known = has_preprocessor(Path(find(name, flag, root)))
    if place.first and not known and model.config.do_normalize:
        what = f"{flag} {name} has no preprocessor_config.json"
        note(f"{what}: its audio gets mean 0 and variance 1, as transformers does it by default")
    return model


def checkpoint_gradients(models: nn.ModuleDict) -> None:
    """Lets those parts that are models of transformers compute their activations again
    in the backward pass: less memory, a third more time."""
    for part in models.values():
        if hasattr(part, "gradient_checkpointing_enable"):
            part.gradient_checkpointing_enable({"use_reentrant": False})


def has_preprocessor(folder: Path) -> bool:
    return any((folder / name).exists() for name in PREPROCESSOR)


def asks_for_normalised(folder: Path, name: str) -> bool:
    """Whether the HuBERT in a folder wants waves of mean 0 and variance 1.

    The file PREPROCESSOR says it. Without that file the default of the library's class
    holds, which normalises, except for the demo world's own HuBERT. name: of the model,
    for the error message. Raises UserError if the file cannot be read.
    """
    from transformers import Wav2Vec2FeatureExtractor

    if not has_preprocessor(folder):
        of_a_demo_world = (folder.parent / "world.json").exists()
        return not of_a_demo_world and Wav2Vec2FeatureExtractor().do_normalize
    try:
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what is raised depends on how the file is damaged
        reason = f"{name} has no readable {PREPROCESSOR[0]} ({first_line(error)})"
        raise UserError(f"{reason}: copy or download it again.") from None
    if not isinstance(extractor.do_normalize, bool):
        raise UserError(f"{name}: do_normalize in its {PREPROCESSOR[0]} is neither true nor false.")
    return extractor.do_normalize


def load_causal(
    name: str, flag: str, root: str, frozen: bool, dtype: torch.dtype | None = None
) -> nn.Module:
    """A causal language model, either frozen or to be trained.

    A frozen model has the type `dtype` and the mark of `weights.mark_supplied`: its
    weights are not saved with a run, and the mark tells later whether the model that
    is loaded in their place is the same. One to be trained is in fp32.

    name: see `find`. Raises UserError.
    """
    from transformers import AutoModelForCausalLM

    dtype = dtype or torch.float32 if frozen else torch.float32
    model = load_model(AutoModelForCausalLM, name, flag, root, dtype)
    if not frozen:
        return model.requires_grad_(True)
    folder = Path(find(name, flag, root))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return mark_supplied(model, digest_of_model(config, weight_files(folder, flag), root))


def begin_and_end(model: nn.Module, name: str) -> tuple[int | None, int | None]:
    """The ids with which a text begins and ends, as the model's configuration has them.

    The first one where it names several, None where it names none. name: of the model,
    for the error message. Raises UserError if an id is outside of the vocabulary.
    """
    size = len(model.get_input_embeddings().weight)
    found = []
    for key in ("bos_token_id", "eos_token_id"):
        ids = getattr(model.config, key, None)
        if isinstance(ids, list | tuple):
            ids = ids[0] if ids else None
        if ids is not None and ids not in range(size):
            what = f"{name} names {ids} as {key} in its config.json"
            raise UserError(f"{what}, and its vocabulary has {size} pieces: give another one.")
        found.append(ids)
    return found[0], found[1]


def load_masked_lm(
    name: str, flag: str, root: str, device: torch.device | str, untrained: int | None = None
) -> bert.MaskedLM:
    """A frozen BERT.

    name: see `find`. untrained: a seed, from which random weights are drawn in place of
    its own. Raises UserError if the model is no BERT with a vocabulary and a head.
    """
    from transformers import AutoModelForMaskedLM

    tokenizer = load_pieces(name, flag, root)
    model = load_model(AutoModelForMaskedLM, name, flag, root)
    if untrained is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(untrained)
            model = type(model)(model.config).eval().requires_grad_(False)
    if not bert.is_bert(model, tokenizer):
        what = "is no BERT with its vocabulary and masked language model"
        raise UserError(f"{flag} {name} {what}: give another.")
    return bert.MaskedLM(model.to(device), tokenizer)


def load_bert(name: str, flag: str, root: str, device: torch.device | str) -> bert.MaskedLM:
    """A frozen BERT whose states are wanted and no answers: it needs no head.

    So folders of sentence-transformers do, too. name: see `find`. Raises UserError if
    the model is no BERT with a vocabulary.
    """
    from transformers import AutoModel

    tokenizer = load_pieces(name, flag, root)
    # The pooler of BERT stands behind the states; most folders lack it.
    model = load_model(AutoModel, name, flag, root, add_pooling_layer=False)
    if not bert.knows_pieces(model, tokenizer):
        raise UserError(f"{flag} {name} is no BERT with its vocabulary: give another.")
    return bert.MaskedLM(model.to(device), tokenizer)
