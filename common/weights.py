"""Weights as safetensors, written in one move, checked when read; without what a named pretrained model supplies.

save_weights(path, own_state(model))
load_own_state(model, load_weights(path))
load_recogniser(recogniser, folder, place)      of a finished run
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from common.files import write_atomically
from common.flags import UserError
from common.place import Place


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    write_atomically(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Raises UserError where the file is missing, cut off or not safetensors."""
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise UserError(f"there is no {path}: that run is not finished, go on with it by --resume.") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): the run has to be repeated or resumed.") from None
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise UserError(f"{path} holds numbers that are not finite: the run has to be repeated.")
    return weights


def average_of(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of what are fractions; of whole numbers the first."""
    first = states[0]
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if x.is_floating_point() else x
        for name, x in first.items()
    }


def own_state(module: nn.Module) -> dict[str, Tensor]:
    """Its state without what a named pretrained model supplies, and with tied tensors once.

    A part with a buffer `supplied` (see pretrained.load_causal) is such a model: its frozen parameters and its other
    buffers can be had from where they came.
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
    """Raises UserError where a part was trained beside another pretrained model, RuntimeError where nothing fits."""
    own = own_state(module)
    if set(own) != set(state):
        raise RuntimeError("these are the weights of another model")
    if any(name.endswith("supplied") and not torch.equal(x.cpu(), state[name].cpu()) for name, x in own.items()):
        raise UserError("these weights belong to another pretrained model than the one named: name that one.")
    module.load_state_dict(state, strict=False)


def load_recogniser(recogniser: nn.Module, folder: str | Path, place: Place) -> nn.Module:
    """The finished run's weights, put into a recogniser built from its configuration. Raises UserError."""
    try:
        load_own_state(recogniser, load_weights(Path(folder) / "model.safetensors"))
    except RuntimeError:
        raise UserError(f"the weights in {folder} do not fit its config.json: was it edited?") from None
    return recogniser.to(place.device).eval()
