"""Low-rank adaptation of a language model's self-attention.

Hu et al. 2022, LoRA, arXiv 2106.09685.

    y = W x + b + 2 B A x        A (r, inputs) random, B (outputs, r) zero at the start

    adapt(lm, rank=8)            freezes W, and adds A and B, which are trained in fp32
    merge(lm)                    puts W + 2 B A in the place of W, A and B

The factor 2 is what others write as alpha / r: alpha 16 for rank 8, and in proportion
for other ranks. As B is zero, adapters change nothing before the first update.

Some models keep the projections of queries, keys and values in one matrix. They get one
pair A, B for all three [choice], with r (d + 3d) parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from common.errors import UserError

# The linear maps of self-attention in each family of transformers; most are named as LLaMA's.
ATTENTION = {
    "bloom": ("query_key_value", "self_attention.dense"),
    "gpt_neox": ("query_key_value", "attention.dense"),
    "gpt2": ("c_attn", "attn.c_proj"),
}
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj")
# Of GPT-NeoX: the one matrix of queries, keys and values; every linear map of a layer; with them
# the output matrix.
LAYER = ("query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
NEOX = {"attention": ("query_key_value",), "all": LAYER, "head": (*LAYER, "lm_head")}
ALPHA_PER_RANK = 2.0


class LoRA(nn.Module):
    """A frozen linear map plus a trainable one of low rank.

    base: nn.Linear, or Conv1D, which is GPT-2's linear map with a transposed weight.
    """

    def __init__(self, base: nn.Module, rank: int):
        super().__init__()
        outputs, inputs = base.weight.shape
        if isinstance(base, Conv1D):
            inputs, outputs = base.weight.shape
        device = base.weight.device
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, inputs, device=device) * inputs**-0.5)
        self.B = nn.Parameter(torch.zeros(outputs, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """x (…, inputs) -> (…, outputs)"""
        y = self.base(x)
        low = F.linear(x.to(self.A.dtype), self.A)  # (…, r)
        return y + (F.linear(low, self.B) * ALPHA_PER_RANK).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """base, with the low-rank map added to its weight."""
        change = ALPHA_PER_RANK * self.B @ self.A  # (outputs, inputs)
        if isinstance(self.base, Conv1D):
            change = change.T
        self.base.weight += change.to(self.base.weight.dtype)
        return self.base


def adapt(lm: nn.Module, rank: int, names: tuple[str, ...] | None = None) -> None:
    """Freezes the model and adds an adapter to each linear map with one of the names.

    names: ends of names, by default those of all linear maps of self-attention. Raises
    UserError if the model has no map with one of them.
    """
    names = names or ATTENTION.get(lm.config.model_type, LLAMA)
    lm.requires_grad_(False)
    found = []
    for wanted in names:
        matching = [name for name, _ in lm.named_modules() if f".{name}".endswith(f".{wanted}")]
        if not matching:
            family = lm.config.model_type
            raise UserError(f"--lora-rank: this {family} model has no {wanted}: use --lora-rank 0.")
        found.extend(matching)
    for name, _ in list(lm.named_modules()):  # in the model's order, which the random draws follow
        if name in found:
            _replace(lm, name, LoRA(lm.get_submodule(name), rank))


def merge(lm: nn.Module) -> None:
    """Removes the adapters; the model still computes the same function."""
    for name, part in list(lm.named_modules()):
        if isinstance(part, LoRA):
            _replace(lm, name, part.merged())


def _replace(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, part)
