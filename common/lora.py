"""Low-rank adaptation of a language model's self-attention. Hu et al. 2022, LoRA, arXiv 2106.09685.

    y = W x + b + 2 B A x        A (r, inputs) random, B (outputs, r) zero: nothing changes at first

    adapt(lm, rank=8)            W stays as it is and is frozen, A and B learn, in fp32
    merge(lm)                    W + 2 B A in place of W, A and B

The 2 is what others write as alpha / r: alpha 16 at rank 8, and in proportion at other ranks.

Models that keep q, k and v in one matrix get one pair on it [choice], r (d + 3d) parameters, however it is laid out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from common.running.flags import UserError

# The linear maps of self-attention, by the family's name in transformers; most families are named as LLaMA.
ATTENTION = {
    "bloom": ("query_key_value", "self_attention.dense"),
    "gpt_neox": ("query_key_value", "attention.dense"),
    "gpt2": ("c_attn", "attn.c_proj"),
}
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj")
ALPHA_PER_RANK = 2.0


class LoRA(nn.Module):
    """A frozen linear map with a trainable one of low rank beside it. base: nn.Linear, or GPT-2's transposed Conv1D."""

    def __init__(self, base: nn.Module, rank: int):
        super().__init__()
        outputs, inputs = (
            reversed(base.weight.shape) if isinstance(base, Conv1D) else base.weight.shape
        )
        device = base.weight.device
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, inputs, device=device) * inputs**-0.5)
        self.B = nn.Parameter(torch.zeros(outputs, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y + (F.linear(F.linear(x.to(self.A.dtype), self.A), self.B) * ALPHA_PER_RANK).to(
            y.dtype
        )

    @torch.no_grad()
    def merged(self) -> nn.Module:
        change = ALPHA_PER_RANK * self.B @ self.A  # (outputs, inputs)
        self.base.weight += (change.T if isinstance(self.base, Conv1D) else change).to(
            self.base.weight.dtype
        )
        return self.base


def adapt(lm: nn.Module, rank: int, names: tuple[str, ...] | None = None) -> None:
    """Freezes the model and gives the linear maps whose names end so an adapter; absent: all of self-attention.

    Raises UserError where it has none of such a name.
    """
    names = names or ATTENTION.get(lm.config.model_type, LLAMA)
    lm.requires_grad_(False)
    found = [
        name
        for name, part in lm.named_modules()
        if ("." + name).endswith(tuple("." + n for n in names))
    ]
    if lacking := [n for n in names if not any(("." + name).endswith("." + n) for name in found)]:
        raise UserError(
            f"--lora-rank: this {lm.config.model_type} model has no {lacking[0]}: use --lora-rank 0."
        )
    for name in found:
        _replace(lm, name, LoRA(lm.get_submodule(name), rank))


def merge(lm: nn.Module) -> None:
    """The same function, without adapters."""
    for name, part in list(lm.named_modules()):
        if isinstance(part, LoRA):
            _replace(lm, name, part.merged())


def _replace(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, part)
