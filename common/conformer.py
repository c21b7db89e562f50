"""Conformer encoder (Gulati et al., Interspeech 2020) with rotary positions and LayerNorm instead of BatchNorm.

    features (B, F, 80) -> Subsampling -> (B, T, D) -> N x ConformerBlock -> LayerNorm -> (B, T, D)

    block:  x + FF/2 -> x + attention -> x + convolution -> x + FF/2                    (macaron; else one FF)

Padding never touches real frames: attention does not see it, convolutions meet zeros there, and the subsampling uses no
padding in time at all, so an utterance comes out the same alone and in a batch. A mask is True where a frame is real:

    lengths 4, 2, T 4:      1 1 1 1
                            1 1 0 0
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def length_mask(lengths: Tensor, T: int) -> Tensor:
    """(B,) -> (B, T), True for real frames."""
    return torch.arange(T, device=lengths.device) < lengths[:, None]


def subsampled(frames, factor: int):
    """Encoder frames (int or Tensor) of so many feature frames, 0 for what is too short; factor 4 or 8."""
    for _ in range({4: 2, 8: 3}[factor]):
        frames = (frames - 1) // 2
    return frames.clamp(min=0) if isinstance(frames, Tensor) else max(frames, 0)


class Subsampling(nn.Module):
    """2 (x4) or 3 (x8) convolutions 3 x 3 of stride 2 over time and frequency, Linear to the width D, LayerNorm.

    T = (F - 1) // 2, once per convolution: x4 gives a frame per 40 ms, x8 one per 80 ms. channels sets the cost.
    """

    def __init__(self, n_mels: int, dim: int, factor: int, channels: int):
        super().__init__()
        self.shortest = 2 * factor - 1  # feature frames that give one encoder frame
        layers = []
        for i in range({4: 2, 8: 3}[factor]):
            layers += [nn.Conv2d(channels if i else 1, channels, 3, stride=2, padding=(0, 1)), nn.ReLU()]
            n_mels = (n_mels + 1) // 2
        self.convolutions = nn.Sequential(*layers)
        self.linear = nn.Linear(channels * n_mels, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, max(0, self.shortest - x.shape[1])))
        x = self.convolutions(x[:, None])  # (B, channels, T, n_mels / factor)
        return self.norm(self.linear(x.transpose(1, 2).flatten(2)))  # (B, T, D)


class Dropout(nn.Module):
    """torch's dropout, three times as fast on a CPU, where drawing the random numbers is what costs.

    One 64-bit draw serves four elements; the probability is exact to 1 / 65536.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return F.dropout(x, self.p, self.training)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = bits[: x.numel()].view(x.shape) >= round(self.p * 2**16) - 2**15
        return x * keep.to(x.dtype).mul_(1 / (1 - self.p))


def rotary_table(T: int, head_dim: int, device) -> tuple[Tensor, Tensor]:
    """cos and sin (T, 1, 1, head_dim) of position times frequency. Su et al. 2021, RoFormer."""
    frequencies = 10_000.0 ** (-torch.arange(0, head_dim, 2, device=device) / head_dim)  # (head_dim / 2,)
    angles = torch.arange(T, device=device)[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)[:, None, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """x (B, T, ., ., head_dim): turns each pair (x_i, x_{i + head_dim/2}) by its frame's angle.

    The dot product of a query and a key then depends on their distance, not on where they stand.
    """
    cos, sin = table
    a, b = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-b, a], dim=-1) * sin).to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions. No dropout on the weights: no fused kernel has it on a CPU."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, T, D); mask (B, 1, 1 or T, T), True where a query may attend a key."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, H, D/H)
        q, k = rotate(qkv[:, :, :2], table).permute(2, 0, 3, 1, 4)  # 2 x (B, H, T, D/H)
        v = qkv[:, :, 2].transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


class Convolution(nn.Module):
    """Pointwise, GLU, depthwise over time, LayerNorm, SiLU, pointwise. LayerNorm: no statistics over a padded batch."""

    def __init__(self, dim: int, kernel: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.pointwise_in = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.depthwise_norm = nn.LayerNorm(dim)
        self.pointwise_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, D); mask (B, T), True for real frames."""
        x = F.glu(self.pointwise_in(self.norm(x)), dim=-1)
        x = x.masked_fill(~mask[..., None], 0.0)
        # self.depthwise(x.transpose(1, 2)), but as a 2-d convolution, which takes (B, T, D) without copying it: that
        # saves a ninth of the Conformer's time on a CPU.
        weight, bias = self.depthwise.weight[..., None], self.depthwise.bias
        x = x.transpose(1, 2)[..., None]  # (B, D, T, 1)
        x = F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, 0), groups=len(weight))[..., 0].transpose(1, 2)
        return self.pointwise_out(F.silu(self.depthwise_norm(x)))


class FeedForward(nn.Sequential):
    def __init__(self, dim: int, ff_dim: int, dropout: float):
        super().__init__(nn.LayerNorm(dim), nn.Linear(dim, ff_dim), nn.SiLU(), Dropout(dropout), nn.Linear(ff_dim, dim))


class ConformerBlock(nn.Module):
    def __init__(self, dim: int, heads: int, ff_dim: int, kernel: int, dropout: float, macaron: bool = True):
        super().__init__()
        self.ff_in = FeedForward(dim, ff_dim, dropout) if macaron else None
        self.attention = SelfAttention(dim, heads)
        self.convolution = Convolution(dim, kernel)
        self.ff_out = FeedForward(dim, ff_dim, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, T, D); mask (B, T)."""
        half = 1.0 if self.ff_in is None else 0.5
        if self.ff_in is not None:
            x = torch.add(x, self.dropout(self.ff_in(x)), alpha=half)
        x = x + self.dropout(self.attention(x, mask[:, None, None, :], table))
        x = x + self.dropout(self.convolution(x, mask))
        return torch.add(x, self.dropout(self.ff_out(x)), alpha=half)


class Conformer(nn.Module):
    """The whole encoder. One final LayerNorm serves the last layer and, where a caller wants them, the lower ones."""

    def __init__(
        self,
        dim: int,
        layers: int,
        heads: int,
        ff_dim: int,
        kernel: int = 31,
        dropout: float = 0.1,
        subsampling: int = 4,
        channels: int = 256,
        macaron: bool = True,
        n_mels: int = 80,
    ):
        super().__init__()
        self.head_dim, self.factor = dim // heads, subsampling
        self.subsampling = Subsampling(n_mels, dim, subsampling, channels)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(ConformerBlock(dim, heads, ff_dim, kernel, dropout, macaron) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, features: Tensor, frames: Tensor, taps: tuple[int, ...] = ()
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """features (B, F, n_mels), frames (B,) -> last output (B, T, D), lengths (B,), outputs of the layers in `taps`.

        taps: layers counted from 1. Tapped outputs pass the same final LayerNorm as the last one; the stream that goes
        on upwards stays un-normalised.
        """
        x = self.dropout(self.subsampling(features))
        lengths = subsampled(frames, self.factor)
        mask = length_mask(lengths, x.shape[1])
        # A row without any real frame would be a softmax over nothing (NaN): it may look at its first, blank frame.
        mask = mask | (torch.arange(x.shape[1], device=x.device) < 1)
        table = rotary_table(x.shape[1], self.head_dim, x.device)
        tapped = {}
        for layer, block in enumerate(self.blocks, start=1):
            x = block(x, mask, table)
            if layer in taps:
                tapped[layer] = self.norm(x)
        return self.norm(x), lengths, [tapped[layer] for layer in taps]
