"""Conformer encoder (Gulati et al., Interspeech 2020) with rotary positions and LayerNorm instead of BatchNorm.

    features (B, F, 80) -> Subsampling -> (B, T, D) -> N x ConformerBlock -> LayerNorm -> (B, T, D)

    block:  x + FF/2 -> x + attention -> x + convolution -> x + FF/2      (no macaron: one whole FF, the last)

**Padding** never touches real frames: attention does not see it, convolutions meet zeros there, and the subsampling
uses no padding behind the end, so an utterance comes out the same alone and in a batch. A mask is True where a frame is
real, or where a query may attend a key:

    lengths 4, 2, T 4:      1 1 1 1
                            1 1 0 0

**Full context** (`chunk` 0): every frame attends all others and the convolutions are centred. **Streaming** (`chunk` c
frames, `left` l of them, a multiple of c): frame i attends frame j iff 0 <= floor(i / c) - floor(j / c) <= l / c, its
own chunk and l frames before that chunk, and the depthwise convolution sees no later frame. c = 2, l = 2:

             key  0 1 2 3 4 5
    query 0       1 1 . . . .       A frame of chunk k therefore depends on no audio after chunk k, however many layers
          1       1 1 . . . .       there are; but each layer adds l frames to what it depends on in the past.
          2       1 1 1 1 . .
          3       1 1 1 1 . .
          4       . . 1 1 1 1
          5       . . 1 1 1 1

**Causal subsampling** (always where chunk > 0; also for a full-context teacher whose frames have to stand where its
streaming student's stand): encoder frame t of factor 4 sees features 4t - 3 to 4t + 3, of factor 8 8t - 7 to 8t + 7,
features before the beginning being zero. Otherwise it sees 4t to 4t + 6, or 8t to 8t + 14.

**One forward** serves training, files and streams. Whatever looks back has its past put before the new frames, and the
newest N frames of both are the past of the next call (`extend`):

    past (B, N, …)        new (B, T, …), some real
    [ . . a b c d ]   +   [ e f g . . ]   ->   . . a b c d e f g . .    next past: [ b c d e f g ]

A `State` holds the past of all layers, in tensors whose shapes do not depend on how much was heard: factor - 1
features, `left` keys and values per layer, kernel - 1 inputs of each depthwise convolution. Keys are kept as they were
before rotation, and positions count from the oldest one kept, so that they stay small for hours. A fresh state is zero,
which is what the convolutions are to see before the beginning; attention does not see what was never heard. Without a
state, an utterance begins with a fresh one; a stream goes on from the state of its last call, and comes out the same:

    y, _, _, state = encoder(x[:, :a], a, state=fresh)
    z, _, _, state = encoder(x[:, a:], b, state=state)          [y z]  ==  encoder(x, a + b).output

for a a multiple of the chunk's features (factor x c); the last call of a stream may bring any number of them. Streams
batch by joining their states (`join_states`); one that has nothing new takes part with 0 frames, and its state stays.
The module keeps nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class State(NamedTuple):
    """What streams remember between two calls; B streams, L layers."""

    features: Tensor  # (B, factor - 1, n_mels) the last ones, for the subsampling
    keys_values: (
        Tensor  # (B, L, left, 2, H, D/H) of the last frames, the newest last; keys not rotated
    )
    tails: Tensor  # (B, L, kernel - 1, D) the last inputs of the depthwise convolutions
    seen: Tensor  # (B,) features seen so far


class Tap(NamedTuple):
    """What one layer shows."""

    output: Tensor  # (B, T, D), normalised
    raw: Tensor  # (B, T, D), as it goes on to the next layer
    qkv: Tensor  # (B, T, 3, H, D/H) queries, keys, values of its attention: projected, not rotated


class Shared(NamedTuple):
    """What is the same for all layers of a call."""

    real: Tensor  # (B, T), True for real frames
    mask: Tensor  # (B, 1, 1 or T, left + T), True where a query may attend a key
    table: tuple[Tensor, Tensor]  # cos and sin for left + T positions
    keep_keys: Tensor  # (B, left) of `newest`
    keep_tail: Tensor  # (B, kernel - 1)


class Encoded(NamedTuple):
    output: Tensor  # (B, T, D) of the last layer, normalised
    lengths: Tensor  # (B,) real frames
    taps: list[Tap]  # of the layers asked for
    state: State  # to go on from


def length_mask(lengths: Tensor, T: int) -> Tensor:
    """(B,) -> (B, T), True for real frames."""
    return torch.arange(T, device=lengths.device) < lengths[:, None]


def chunk_mask(T: int, chunk: int, left: int, device=None) -> Tensor:
    """(T, T), True where frame i may attend frame j: its own chunk, and `left` frames before that chunk."""
    chunks = torch.arange(T, device=device) // chunk
    back = chunks[:, None] - chunks
    return (back >= 0) & (back <= left // chunk)


def subsampled(frames, factor: int, causal: bool = False):
    """Encoder frames (int or Tensor) of so many feature frames, 0 for what is too short; factor 4 or 8."""
    if causal:
        return frames // factor
    for _ in range({4: 2, 8: 3}[factor]):
        frames = (frames - 1) // 2
    return frames.clamp(min=0) if isinstance(frames, Tensor) else max(frames, 0)


def newest(lengths: Tensor, N: int, T: int) -> Tensor:
    """Of N past frames and lengths (B,) real ones of T new ones, where the newest N stand in (B (N + T), …): (B, N)."""
    B, device = len(lengths), lengths.device
    return (torch.arange(B, device=device) * (N + T) + lengths)[:, None] + torch.arange(
        N, device=device
    )


def extend(past: Tensor, new: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """past (B, N, …), new (B, T, …), keep (B, N) of `newest` -> both (B, N + T, …), and the past of the next call."""
    if past.shape[1] == 0:
        return new, past
    both = torch.cat([past.to(new.dtype), new], dim=1)
    return both, both.flatten(0, 1)[keep]


def join_states(states: Sequence[State]) -> State:
    """One state of all streams; `split_state` undoes it."""
    return State(*(torch.cat(parts) for parts in zip(*states, strict=True)))


def split_state(state: State) -> list[State]:
    """One state per stream, B = 1 in each."""
    return [State(*(part[i : i + 1].clone() for part in state)) for i in range(len(state.seen))]


class Subsampling(nn.Module):
    """2 (x4) or 3 (x8) convolutions 3 x 3 of stride 2 over time and frequency, Linear to the width D, LayerNorm.

    T = (F - 1) // 2, once per convolution, or T = F // factor if causal: x4 gives a frame per 40 ms, x8 one per 80 ms.
    channels sets the cost.
    """

    def __init__(self, n_mels: int, dim: int, factor: int, channels: int):
        super().__init__()
        self.shortest = 2 * factor - 1  # feature frames that give one encoder frame
        layers = []
        for i in range({4: 2, 8: 3}[factor]):
            layers += [
                nn.Conv2d(channels if i else 1, channels, 3, stride=2, padding=(0, 1)),
                nn.ReLU(),
            ]
            n_mels = (n_mels + 1) // 2
        self.convolutions = nn.Sequential(*layers)
        self.linear = nn.Linear(channels * n_mels, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, F, n_mels), before which `factor` - 1 past features stand if it is to be causal -> (B, T, D)."""
        x = F.pad(x, (0, 0, 0, max(0, self.shortest - x.shape[1])))
        x = self.convolutions(x[:, None])  # (B, channels, T, n_mels / factor)
        return self.norm(self.linear(x.transpose(1, 2).flatten(2)))


def rotary_table(T: int, head_dim: int, device, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """cos and -+sin (T, 1, head_dim) of position times frequency. Su et al. 2021, RoFormer."""
    frequencies = 10_000.0 ** (
        -torch.arange(0, head_dim, 2, device=device, dtype=dtype) / head_dim
    )  # (head_dim / 2,)
    angles = torch.arange(T, device=device, dtype=dtype)[:, None] * frequencies
    sin = angles.sin()
    return torch.cat([angles.cos()] * 2, dim=-1)[:, None], torch.cat([-sin, sin], dim=-1)[:, None]


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """x (B, T, H, head_dim): turns each pair (x_i, x_{i + head_dim/2}) by its frame's angle, the table's last T.

    The dot product of a query and a key then depends on their distance, not on where they stand.
    """
    cos, sin = (part[-x.shape[1] :] for part in table)
    return (x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin).to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions. No dropout on the weights: no fused kernel has it on a CPU."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, past: Tensor, shared: Shared) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D), past (B, left, 2, H, D/H) -> (B, T, D), queries, keys and values (B, T, 3, H, D/H), new past."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, H, D/H)
        q, keys_values = qkv.split([1, 2], dim=2)
        keys_values, past = extend(past, keys_values, shared.keep_keys)  # (B, left + T, 2, H, D/H)
        k, v = keys_values.unbind(2)
        q, k = rotate(q.squeeze(2), shared.table), rotate(k, shared.table)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, H, T or left + T, D/H)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=shared.mask)
        return self.out(y.transpose(1, 2).flatten(2)), qkv, past


class Convolution(nn.Module):
    """Pointwise, GLU, depthwise over time, LayerNorm, SiLU, pointwise. LayerNorm: no statistics over a padded batch."""

    def __init__(self, dim: int, kernel: int, causal: bool):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.pointwise_in = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(
            dim, dim, kernel, padding=0 if causal else kernel // 2, groups=dim
        )
        self.depthwise_norm = nn.LayerNorm(dim)
        self.pointwise_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, past: Tensor, shared: Shared) -> tuple[Tensor, Tensor]:
        """x (B, T, D), past (B, kernel - 1, D) if causal, else (B, 0, D) -> (B, T, D) and the new past."""
        x = F.glu(self.pointwise_in(self.norm(x)), dim=-1)
        x = x.masked_fill(~shared.real[..., None], 0.0)
        x, past = extend(past, x, shared.keep_tail)
        return self.pointwise_out(F.silu(self.depthwise_norm(self.convolve(x)))), past

    def convolve(self, x: Tensor) -> Tensor:
        """self.depthwise on (B, T, D)."""
        weight, bias, padding = self.depthwise.weight, self.depthwise.bias, self.depthwise.padding
        if padding == (0,) and x.shape[1] < weight.shape[2] + 16:
            # The chunk of a stream: setting up a convolution takes longer than this sum.
            return (x.unfold(1, weight.shape[2], 1) * weight[:, 0]).sum(-1) + bias
        # As a 2-d convolution, which takes (B, T, D) without copying it: a ninth of the Conformer's time on a CPU.
        x = x.transpose(1, 2)[..., None]  # (B, D, T, 1)
        x = F.conv2d(x, weight[..., None], bias, padding=(*padding, 0), groups=len(weight))
        return x[..., 0].transpose(1, 2)


class FeedForward(nn.Sequential):
    def __init__(self, dim: int, ff_dim: int, dropout: float):
        layers = nn.Linear(dim, ff_dim), nn.SiLU(), nn.Dropout(dropout), nn.Linear(ff_dim, dim)
        super().__init__(nn.LayerNorm(dim), *layers)


class ConformerBlock(nn.Module):
    def __init__(
        self,
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

    def forward(
        self, x: Tensor, keys_values: Tensor, tail: Tensor, shared: Shared
    ) -> tuple[Tensor, ...]:
        """x (B, T, D) and its past -> (B, T, D), queries, keys, values (B, T, 3, H, D/H), the new keys_values, tail."""
        if self.ff_in:
            x = torch.add(x, self.dropout(self.ff_in(x)), alpha=0.5)
        y, qkv, keys_values = self.attention(x, keys_values, shared)
        x = x + self.dropout(y)
        y, tail = self.convolution(x, tail, shared)
        x = x + self.dropout(y)
        x = torch.add(x, self.dropout(self.ff_out(x)), alpha=0.5 if self.ff_in else 1.0)
        return x, qkv, keys_values, tail


class Conformer(nn.Module):
    """The whole encoder. One final LayerNorm serves the last layer and, where a caller wants them, the lower ones.

    chunk, left: encoder frames, see above; chunk 0: full context. Raises ValueError if left is not a multiple of chunk.
    """

    def __init__(
        self, dim: int, layers: int, heads: int, ff_dim: int, kernel: int = 31, dropout: float = 0.1,
        subsampling: int = 4, channels: int = 256, *, chunk: int = 0, left: int = 0, causal_subsampling: bool = False,
        n_mels: int = 80, macaron: bool = True,
    ):  # fmt: skip
        super().__init__()
        if left % chunk if chunk else left:
            raise ValueError(
                f"left context ({left} frames) has to be a multiple of the chunk ({chunk} frames)"
            )
        self.heads, self.kernel, self.factor, self.n_mels = heads, kernel, subsampling, n_mels
        self.chunk, self.left, self.causal = chunk, left, chunk > 0
        self.causal_subsampling = causal_subsampling or self.causal
        self.subsampling = Subsampling(n_mels, dim, subsampling, channels)
        self.dropout = nn.Dropout(dropout)
        sizes = dim, heads, ff_dim, kernel, dropout
        self.blocks = nn.ModuleList(
            ConformerBlock(*sizes, self.causal, macaron) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)

    def fresh_state(self, B: int) -> State:
        """Of B streams that have heard nothing, where and of what type the parameters are."""
        zeros, layers, dim = self.norm.weight.new_zeros, len(self.blocks), len(self.norm.weight)
        return State(
            zeros(B, self.factor - 1 if self.causal_subsampling else 0, self.n_mels),
            zeros(B, layers, self.left, 2, self.heads, dim // self.heads),
            zeros(B, layers, self.kernel - 1 if self.causal else 0, dim),
            zeros(B, dtype=torch.long),
        )

    def shared(self, state: State, lengths: Tensor, T: int) -> Shared:
        """lengths (B,) of T frames that go on from the state."""
        position = torch.arange(self.left + T, device=lengths.device)
        first = self.left - state.seen[:, None] // self.factor  # (B, 1) of the keys that there are
        known = (position >= first) & (position < self.left + lengths[:, None])  # (B, left + T)
        # A query without any key would be a softmax over nothing (NaN): padding may look at a blank frame, or itself.
        if self.chunk:
            visible = chunk_mask(self.left + T, self.chunk, self.left, lengths.device)
            mask = ((visible & known[:, None]) | (position[:, None] == position))[
                :, None, self.left :
            ]
        else:
            mask = (known | (position < 1))[:, None, None]
        table_type = torch.promote_types(self.norm.weight.dtype, torch.float32)
        table = rotary_table(
            self.left + T, len(self.norm.weight) // self.heads, lengths.device, table_type
        )
        keep = newest(lengths, self.left, T), newest(lengths, state.tails.shape[2], T)
        return Shared(length_mask(lengths, T), mask, table, *keep)

    def forward(
        self, features: Tensor, frames: Tensor, taps: Sequence[int] = (), state: State | None = None
    ) -> Encoded:
        """features (B, F, n_mels), frames (B,) -> output (B, T, D), lengths (B,), `taps`, state to go on from.

        taps: layers counted from 1. Raises ValueError with a state if the context is full, or if a stream is to go on
        after a call that was not whole chunks.
        """
        if state is None:
            state = self.fresh_state(len(features))
        elif not self.chunk:
            raise ValueError(
                "an encoder of full context needs the whole utterance at once, and takes no state"
            )
        elif (state.seen % (self.factor * self.chunk))[frames > 0].any():
            raise ValueError("a stream has ended with the call that brought it a part of a chunk")
        keep = newest(frames, state.features.shape[1], features.shape[1])
        x, last_features = extend(state.features, features, keep)
        x = self.dropout(self.subsampling(x))
        lengths = subsampled(frames, self.factor, self.causal_subsampling)
        shared = self.shared(state, lengths, x.shape[1])
        past, found = [], {}
        layers = zip(self.blocks, state.keys_values.unbind(1), state.tails.unbind(1), strict=True)
        for layer, (block, keys_values, tail) in enumerate(layers, start=1):
            x, qkv, *new = block(x, keys_values, tail, shared)
            past.append(new)
            if layer in taps:
                found[layer] = Tap(self.norm(x), x, qkv)
        state = State(
            last_features,
            *(torch.stack(parts, 1) for parts in zip(*past, strict=True)),
            state.seen + frames,
        )
        return Encoded(self.norm(x), lengths, [found[layer] for layer in taps], state)
