"""Which outputs of an encoder depend on which inputs: measured, and as a picture.

The picture shows whether an encoder streams. An output that depends on audio behind its
own chunk cannot be computed while the audio comes in.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from common import figures
from common.conformer import Conformer, chunk_mask

CHUNKS = 16  # in the picture


def measure(function: Callable[[Tensor], Tensor], x: Tensor, block: int, out_block: int) -> Tensor:
    """(blocks of outputs, blocks of inputs), True where the output changes at all.

    function: x (F, …) -> (T, …). x is cut into blocks of `block` frames and the output
    into blocks of `out_block` frames; one block of x after the other is disturbed.
    """
    before = function(x)
    columns = []
    for start in range(0, len(x), block):
        disturbed = x.clone()
        disturbed[start : start + block] += 1.0
        changed = (function(disturbed) != before).flatten(1).any(1)  # (T,)
        columns.append(torch.stack([part.any() for part in changed.split(out_block)]))
    return torch.stack(columns, dim=1)


@torch.inference_mode()
def draw(path: Path, encoder: Conformer) -> None:
    """The chunk mask of one layer's attention, and what the whole encoder depends on.

    An encoder with full context is shown in blocks of 4 of its frames.
    """
    encoder = encoder.eval()
    chunk = encoder.chunk or 4
    device = encoder.norm.weight.device
    mel = torch.zeros(CHUNKS * encoder.factor * chunk, 80, device=device)

    def outputs(x: Tensor) -> Tensor:
        return encoder(x[None], torch.tensor([len(x)], device=device)).output[0]

    measured = measure(outputs, mel, encoder.factor * chunk, chunk)
    mask = torch.ones(CHUNKS, CHUNKS, dtype=torch.bool)
    if encoder.chunk:
        mask = chunk_mask(CHUNKS, 1, encoder.left // encoder.chunk)
    panels = {
        "one layer's attention": mask.float().numpy(),
        "the encoder, measured": measured.cpu().float().numpy(),
    }
    figures.matrices(path, panels, "chunk of the input", "chunk of the output")
