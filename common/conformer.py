"""The Conformer encoder (Gulati et al., Interspeech 2020), with rotary positions, and
with LayerNorm instead of BatchNorm in its convolution modules.

    features (B, F, 80) -> Subsampling -> N x ConformerBlock -> LayerNorm -> (B, T, D)

    block:  x + FF/2 -> x + attention -> x + convolution -> x + FF/2
            (macaron=False: only the last feed-forward part, which then counts whole)

**Padding** never changes a real frame: attention does not see padding, convolutions see
zeros there, and the subsampling adds no padding at the end. An utterance therefore has
the same output alone and in a batch. A mask is True where a frame is real, or where a
query may attend a key:

    lengths 4, 2, T 4:      1 1 1 1
                            1 1 0 0

**Full context** (chunk=0): every frame attends every other frame, and the depthwise
convolutions are centred.

**Chunks** (chunk=c, left=l, both in encoder frames; l is a multiple of c): frame i
attends frame j iff 0 <= floor(i / c) - floor(j / c) <= l / c. These are the frames of
its own chunk, and the l frames before that chunk. The depthwise convolutions see no
later frame. For c = 2, l = 2:

             key  0 1 2 3 4 5
    query 0       1 1 . . . .       No frame of chunk k depends on audio after chunk k,
          1       1 1 . . . .       however many layers there are. But every layer adds
          2       1 1 1 1 . .       l frames to the past on which a frame depends.
          3       1 1 1 1 . .
          4       . . 1 1 1 1
          5       . . 1 1 1 1

**Subsampling** by 4 computes encoder frame t from features 4t to 4t + 6 (by 8: 8t to
8t + 14). Causal subsampling computes it from features 4t - 3 to 4t + 3 (8t - 7 to
8t + 7); features before the beginning are zero. Models with chunks always use it. So
does a full-context teacher if its frames must cover the same audio as the frames of a
streaming student.

Everything here is for whole utterances, except the argument `past`, which layers get in
a stream only: it puts frames of earlier calls in front of the new ones. This part is in
conformer_stream.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --------------------------------------------------------------------------- lengths and masks


def length_mask(lengths: Tensor, T: int) -> Tensor:
    """lengths (B,) -> (B, T), True for real frames."""
    return torch.arange(T, device=lengths.device) < lengths[:, None]


def chunk_mask(T: int, chunk: int, left: int, device=None) -> Tensor:
    """(T, T), True where frame i may attend frame j."""
    chunks = torch.arange(T, device=device) // chunk  # (T,) the chunk of each frame
    back = chunks[:, None] - chunks  # (T, T)
    return (back >= 0) & (back <= left // chunk)


def subsampled(frames: int | Tensor, factor: int, causal: bool = False) -> int | Tensor:
    """Number of encoder frames for so many feature frames; 0 if they are too few."""
    if causal:
        return frames // factor
    for _ in range(CONVOLUTIONS[factor]):
        frames = (frames - 1) // 2
    return frames.clamp(min=0) if isinstance(frames, Tensor) else max(frames, 0)


# -------------------------------------------------------------------------------------- layers

CONVOLUTIONS = {4: 2, 8: 3}  # subsampling factor -> number of convolutions with stride 2


class Subsampling(nn.Module):
    """3 x 3 convolutions with stride 2 over time and frequency, a Linear, LayerNorm.

    With a feature frame every 10 ms, factor 4 gives an encoder frame every 40 ms, and
    factor 8 one every 80 ms. The cost depends mostly on `channels`.
    """

    def __init__(self, n_mels: int, dim: int, factor: int, channels: int):
        super().__init__()
        self.shortest = 2 * factor - 1  # feature frames that give one encoder frame
        layers = []
        for i in range(CONVOLUTIONS[factor]):
            inputs = 1 if i == 0 else channels
            # No padding in time: an utterance must end the same alone and in a batch.
            layers.append(nn.Conv2d(inputs, channels, 3, stride=2, padding=(0, 1)))
            layers.append(nn.ReLU())
            n_mels = (n_mels + 1) // 2
        self.convolutions = nn.Sequential(*layers)
        self.linear = nn.Linear(channels * n_mels, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, F, n_mels) -> (B, T, D). Causal: x begins with `factor` - 1 zeros."""
        x = F.pad(x, (0, 0, 0, max(0, self.shortest - x.shape[1])))  # at least one encoder frame
        x = self.convolutions(x[:, None])  # (B, channels, T, n_mels / factor)
        return self.norm(self.linear(x.transpose(1, 2).flatten(2)))


def rotary_table(
    T: int, head_dim: int, device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, (T, 1, head_dim).

    RoFormer, Su et al. 2021. Both numbers of a pair have one frequency; sin is negative
    for the first of them.
    """
    even = torch.arange(0, head_dim, 2, device=device, dtype=dtype)  # (head_dim / 2,)
    frequencies = 10_000.0 ** (-even / head_dim)
    angles = torch.arange(T, device=device, dtype=dtype)[:, None] * frequencies  # (T, head_dim / 2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1)[:, None], torch.cat([-sin, sin], dim=-1)[:, None]


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turns each pair (x_i, x_{i + head_dim/2}) by the angle of its frame.

    x (B, T, H, head_dim) stands at the last T positions of the table. The dot product
    of a query and a key then depends on their distance, not on where they stand.
    """
    T, head_dim = x.shape[1], x.shape[-1]
    cos, sin = table
    other = x.roll(head_dim // 2, dims=-1)  # for every number the other one of its pair
    return (x * cos[-T:] + other * sin[-T:]).to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions.

    Attention weights have no dropout: the fused kernels for CPUs do not support it.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, mask: Tensor, table: tuple[Tensor, Tensor], past=None
    ) -> tuple[Tensor, Tensor]:
        """x (B, T, D) -> (B, T, D), and queries, keys and values before their rotation.

        mask (B, 1, 1 or T, S) is True where a query may attend a key. There are S = T
        keys, or S = left + T if there is a past. table: of `rotary_table`, for at least
        S positions. Queries, keys and values: (B, T, 3, H, D/H).
        """
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, H, D/H)
        queries, keys_values = qkv.split([1, 2], dim=2)
        if past is not None:
            keys_values = past.extend_keys_values(keys_values)  # (B, S, 2, H, D/H)
        k, v = keys_values.unbind(2)  # (B, S, H, D/H)
        q = rotate(queries.squeeze(2), table).transpose(1, 2)  # (B, H, T, D/H)
        k = rotate(k, table).transpose(1, 2)  # (B, H, S, D/H)
        y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2)), qkv


class Convolution(nn.Module):
    """Pointwise, GLU, depthwise over time, LayerNorm, SiLU, pointwise.

    LayerNorm needs the frame alone; BatchNorm would count the padding of a batch.
    """

    def __init__(self, dim: int, kernel: int, causal: bool):
        super().__init__()
        self.kernel, self.causal = kernel, causal
        self.norm = nn.LayerNorm(dim)
        self.pointwise_in = nn.Linear(dim, 2 * dim)
        padding = 0 if causal else kernel // 2
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=padding, groups=dim)
        self.depthwise_norm = nn.LayerNorm(dim)
        self.pointwise_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, real: Tensor, past=None) -> Tensor:
        """x (B, T, D), real (B, T) -> (B, T, D)."""
        x = F.glu(self.pointwise_in(self.norm(x)), dim=-1)  # (B, T, D)
        x = x.masked_fill(~real[..., None], 0.0)
        if past is not None:
            x = past.extend_tail(x)  # (B, kernel - 1 + T, D)
        elif self.causal:
            x = F.pad(x, (0, 0, self.kernel - 1, 0))  # zeros before the beginning
        x = depthwise_convolution(x, self.depthwise)  # (B, T, D)
        return self.pointwise_out(F.silu(self.depthwise_norm(x)))


def depthwise_convolution(x: Tensor, module: nn.Conv1d) -> Tensor:
    """module(x.transpose(1, 2)).transpose(1, 2) of x (B, T, D), faster on a CPU."""
    weight, bias = module.weight, module.bias  # (D, 1, kernel), (D,)
    kernel = weight.shape[2]
    if module.padding == (0,) and x.shape[1] < kernel + 16:
        # A sum of products, for the chunks of a stream: saves a tenth of the encoder's time there.
        return (x.unfold(1, kernel, 1) * weight[:, 0]).sum(-1) + bias
    # A 2-d convolution takes (B, T, D) without copying it: saves 4 to 8 % of the encoder's time.
    x = x.transpose(1, 2)[..., None]  # (B, D, T, 1)
    padding = (*module.padding, 0)
    x = F.conv2d(x, weight[..., None], bias, padding=padding, groups=len(weight))
    return x[..., 0].transpose(1, 2)


class FeedForward(nn.Sequential):
    """LayerNorm, Linear to a larger width, SiLU, dropout, Linear back."""

    def __init__(self, dim: int, ff_dim: int, dropout: float):
        super().__init__(
            nn.LayerNorm(dim),
            nn.Linear(dim, ff_dim),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(ff_dim, dim),
        )


class ConformerBlock(nn.Module):
    """Feed-forward, attention, convolution, feed-forward, all with a residual."""

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        ff_dim: int,
        kernel: int,
        dropout: float,
        causal: bool,
        macaron: bool,
    ):
        super().__init__()
        self.ff_in = FeedForward(dim, ff_dim, dropout) if macaron else None
        self.attention = SelfAttention(dim, heads)
        self.convolution = Convolution(dim, kernel, causal)
        self.ff_out = FeedForward(dim, ff_dim, dropout)
        self.dropout = nn.Dropout(dropout)
        self.ff_scale = 0.5 if macaron else 1.0

    def forward(
        self,
        x: Tensor,
        real: Tensor,
        mask: Tensor,
        table: tuple[Tensor, Tensor],
        past=None,
    ) -> tuple[Tensor, Tensor]:
        """x (B, T, D) -> (B, T, D), and queries, keys and values (B, T, 3, H, D/H).

        real (B, T): True for real frames; mask and table: see `SelfAttention`.
        """
        if self.ff_in is not None:
            x = x + self.ff_scale * self.dropout(self.ff_in(x))
        y, qkv = self.attention(x, mask, table, past)
        x = x + self.dropout(y)
        x = x + self.dropout(self.convolution(x, real, past))
        x = x + self.ff_scale * self.dropout(self.ff_out(x))
        return x, qkv


# ----------------------------------------------------------------------------------- the encoder


class Tap(NamedTuple):
    """The outputs of one layer."""

    output: Tensor  # (B, T, D), normalised
    raw: Tensor  # (B, T, D), the input of the next layer
    qkv: Tensor  # (B, T, 3, H, D/H) queries, keys and values of its attention, not rotated


class Encoded(NamedTuple):
    """The outputs of the encoder."""

    output: Tensor  # (B, T, D) of the last layer, normalised
    lengths: Tensor  # (B,) number of real frames
    taps: list[Tap]  # of the layers that the caller wanted, in that order


class Conformer(nn.Module):
    """The whole encoder. Its final LayerNorm serves the last layer and all taps.

    chunk and left are numbers of encoder frames; chunk 0 means full context. Raises
    ValueError if left is not a multiple of chunk.
    """

    def __init__(
        self,
        *,
        dim: int,
        layers: int,
        heads: int,
        ff_dim: int,
        kernel: int = 31,
        dropout: float = 0.1,
        subsampling: int = 4,
        channels: int = 256,
        chunk: int = 0,
        left: int = 0,
        causal_subsampling: bool = False,
        n_mels: int = 80,
        macaron: bool = True,
    ):
        super().__init__()
        if left != 0 and (chunk == 0 or left % chunk != 0):
            raise ValueError(
                f"left context ({left} frames) has to be a multiple of the chunk ({chunk} frames)"
            )
        self.dim, self.heads = dim, heads
        self.kernel = kernel
        self.factor = subsampling
        self.n_mels = n_mels
        self.chunk, self.left = chunk, left
        self.causal_subsampling = causal_subsampling or chunk > 0

        self.subsampling = Subsampling(n_mels, dim, subsampling, channels)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            block = ConformerBlock(
                dim=dim,
                heads=heads,
                ff_dim=ff_dim,
                kernel=kernel,
                dropout=dropout,
                causal=chunk > 0,
                macaron=macaron,
            )
            self.blocks.append(block)
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: Tensor, frames: Tensor, taps: Sequence[int] = ()) -> Encoded:
        """Encodes whole utterances: features (B, F, n_mels), frames (B,) their lengths.

        taps: the layers, counted from 1, whose outputs the caller wants too.
        """
        if self.causal_subsampling:
            features = F.pad(features, (0, 0, self.factor - 1, 0))  # zeros before the beginning
        x = self.subsampling(features)  # (B, T, D)
        lengths = subsampled(frames, self.factor, self.causal_subsampling)
        return self.run_blocks(x, lengths, self.attention_mask(lengths, x.shape[1]), taps)

    def attention_mask(self, lengths: Tensor, T: int) -> Tensor:
        """lengths (B,) -> (B, 1, 1 or T, T), True where a query may attend a key."""
        real = length_mask(lengths, T)  # (B, T)
        # A softmax over no key at all would be NaN, so padding needs a key too.
        if self.chunk == 0:
            real[:, 0] = True
            return real[:, None, None]  # all queries of an utterance have the same keys
        itself = torch.eye(T, dtype=torch.bool, device=lengths.device)
        visible = chunk_mask(T, self.chunk, self.left, lengths.device)  # (T, T)
        return ((visible & real[:, None]) | itself)[:, None]

    def run_blocks(
        self,
        x: Tensor,
        lengths: Tensor,
        mask: Tensor,
        taps: Sequence[int],
        pasts: Sequence | None = None,
    ) -> Encoded:
        """Everything after the subsampling: x (B, T, D), lengths (B,) -> all outputs.

        mask: see `SelfAttention`; pasts: in a stream, one per layer.
        """
        x = self.dropout(x)
        real = length_mask(lengths, x.shape[1])  # (B, T)
        at_least_fp32 = torch.promote_types(self.norm.weight.dtype, torch.float32)
        # Position 0 is that of the oldest frame in the past of a stream.
        positions = self.left + x.shape[1]
        table = rotary_table(positions, self.dim // self.heads, x.device, at_least_fp32)
        pasts = pasts or [None] * len(self.blocks)
        found = {}  # layer -> Tap
        for layer, (block, past) in enumerate(zip(self.blocks, pasts, strict=True), start=1):
            x, qkv = block(x, real, mask, table, past)
            if layer in taps:
                found[layer] = Tap(self.norm(x), x, qkv)
        return Encoded(self.norm(x), lengths, [found[layer] for layer in taps])
