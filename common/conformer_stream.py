"""The Conformer of conformer.py for utterances that come in piece by piece.

    state = fresh_state(encoder, B)
    y, state = encode_piece(encoder, x[:, :a], a, state)
    z, state = encode_piece(encoder, x[:, a:], b, state)    [y z] == encoder(x, a + b)

Pieces are whole chunks (chunk x subsampling factor features); only the last piece of a
stream may have any length. Attention, depthwise convolutions and subsampling look back
by a fixed number of frames. A `State` holds these frames, so its size does not depend
on the length of the stream.

Before the first frame it holds zeros. The convolutions need these zeros; attention
masks them. Keys are stored without rotation, and positions count from the oldest stored
key, so that they stay small in a stream of hours.

Streams can share a batch: `join_states` before, `split_state` after. A stream without
new audio takes part with 0 frames, and its state stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from common.conformer import Conformer, Encoded, chunk_mask, subsampled

Index = tuple[Tensor, Tensor]  # of rows (B, 1) and of frames (B, N)


class State(NamedTuple):
    """What B streams keep between two calls of an encoder with L layers."""

    features: Tensor  # (B, factor - 1, n_mels) the last ones, for the subsampling
    keys_values: Tensor  # (B, L, left, 2, H, D/H) of the last frames, newest last, not rotated
    tails: Tensor  # (B, L, kernel - 1, D) the last inputs of the depthwise convolutions
    seen: Tensor  # (B,) number of features so far


def fresh_state(encoder: Conformer, B: int) -> State:
    """The state of B streams before their first frame, zero everywhere."""
    zeros = encoder.norm.weight.new_zeros
    layers = len(encoder.blocks)
    head_dim = encoder.dim // encoder.heads
    return State(
        features=zeros(B, encoder.factor - 1, encoder.n_mels),
        keys_values=zeros(B, layers, encoder.left, 2, encoder.heads, head_dim),
        tails=zeros(B, layers, encoder.kernel - 1, encoder.dim),
        seen=zeros(B, dtype=torch.long),
    )


def encode_piece(
    encoder: Conformer, features: Tensor, frames: Tensor, state: State, taps: Sequence[int] = ()
) -> tuple[Encoded, State]:
    """Encodes the next piece of B streams: features (B, F, n_mels), frames (B,).

    Returns the outputs for the new frames, and the state for the next call. Raises
    ValueError if the encoder has full context, or if a stream continues after a piece
    that ended within a chunk.
    """
    if encoder.chunk == 0:
        raise ValueError("an encoder of full context needs the whole utterance at once")
    if (state.seen % (encoder.factor * encoder.chunk))[frames > 0].any():
        raise ValueError("a stream has ended with the call that brought it a part of a chunk")
    newest = newest_frames(frames, encoder.factor - 1)
    features, last_features = extend(state.features, features, newest)
    x = encoder.subsampling(features)  # (B, T, D)
    lengths = subsampled(frames, encoder.factor, causal=True)
    newest = newest_frames(lengths, encoder.left), newest_frames(lengths, encoder.kernel - 1)
    pasts = []
    for layer in range(len(encoder.blocks)):
        pasts.append(LayerPast(state.keys_values[:, layer], state.tails[:, layer], *newest))
    mask = mask_with_past(encoder, lengths, x.shape[1], state.seen)
    encoded = encoder.run_blocks(x, lengths, mask, taps, pasts)
    state = State(
        features=last_features,
        keys_values=torch.stack([past.keys_values for past in pasts], dim=1),
        tails=torch.stack([past.tail for past in pasts], dim=1),
        seen=state.seen + frames,
    )
    return encoded, state


class LayerPast:
    """The stored frames of one layer during one call of `encode_piece`.

    The layer puts them in front of its new frames; the newest of both replace them.
    """

    def __init__(self, keys_values: Tensor, tail: Tensor, newest_keys: Index, newest_tail: Index):
        self.keys_values = keys_values  # (B, left, 2, H, D/H), not rotated
        self.tail = tail  # (B, kernel - 1, D) inputs of the depthwise convolution
        self.newest_keys = newest_keys  # of `newest_frames`, the same for all layers
        self.newest_tail = newest_tail

    def extend_keys_values(self, new: Tensor) -> Tensor:
        """new (B, T, 2, H, D/H) -> (B, left + T, 2, H, D/H)"""
        extended, self.keys_values = extend(self.keys_values, new, self.newest_keys)
        return extended

    def extend_tail(self, new: Tensor) -> Tensor:
        """new (B, T, D) -> (B, kernel - 1 + T, D)"""
        extended, self.tail = extend(self.tail, new, self.newest_tail)
        return extended


def newest_frames(lengths: Tensor, N: int) -> Index:
    """The places of the newest N frames, after N stored and `lengths` (B,) new ones."""
    row = torch.arange(len(lengths), device=lengths.device)[:, None]  # (B, 1)
    return row, lengths[:, None] + torch.arange(N, device=lengths.device)  # (B, N)


def extend(past: Tensor, new: Tensor, newest: Index) -> tuple[Tensor, Tensor]:
    """Puts past (B, N, …) in front of new (B, T, …); newest: of `newest_frames`.

    Returns both (B, N + T, …), and the newest N real frames (B, N, …):

        past             new                both                     newest
        [ . . a b ]  +   [ c d e . . ]  ->  [ . . a b c d e . . ]    [ b c d e ]
    """
    both = torch.cat([past.to(new.dtype), new], dim=1)
    return both, both[newest]


def mask_with_past(encoder: Conformer, lengths: Tensor, T: int, seen: Tensor) -> Tensor:
    """The chunk mask of T new frames after `left` stored ones, (B, 1, T, left + T).

    lengths (B,): how many of the T frames are real; seen (B,): features before them.
    """
    left = encoder.left
    position = torch.arange(left + T, device=lengths.device)
    begin = left - seen // encoder.factor  # (B,) position of the stream's first frame
    exists = (position >= begin[:, None]) & (position < left + lengths[:, None])  # (B, left + T)
    visible = chunk_mask(left + T, encoder.chunk, left, lengths.device)  # (left + T, left + T)
    itself = position[:, None] == position  # padding needs a key too: softmax over none is NaN
    mask = (visible & exists[:, None]) | itself  # (B, left + T, left + T)
    return mask[:, None, left:]


def join_states(states: Sequence[State]) -> State:
    """One state of all streams; `split_state` undoes it."""
    return State(*(torch.cat(parts) for parts in zip(*states, strict=True)))


def split_state(state: State) -> list[State]:
    """One state per stream, each with B = 1."""
    states = []
    for i in range(len(state.seen)):
        states.append(State(*(part[i : i + 1].clone() for part in state)))
    return states
