"""Connectionist temporal classification (Graves et al., ICML 2006): loss, feasibility, greedy decoding, alignment.

A path puts one label or the blank (label 0) on every frame; removing repeats and then blanks gives the transcript:

    frames   0  1  2  3  4  5  6          path  - a a - a b b   ->   a a b
    p(y | x) = sum over all paths that give y of prod_t p(path_t | x)

Two equal labels in a row need a blank between them, so an utterance is feasible only if T >= U + repeats.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor

BLANK = 0


def required_frames(targets: Tensor, target_lengths: Tensor) -> Tensor:
    """targets (B, U) -> (B,) the fewest frames that can carry them: U + number of equal neighbours."""
    inside = torch.arange(1, targets.shape[1], device=targets.device) < target_lengths[:, None]  # (B, U - 1)
    return target_lengths + ((targets[:, 1:] == targets[:, :-1]) & inside).sum(1)


def ctc_loss(log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
    """-log p(y | x) per utterance, (B,), in the precision of log_probs (B, T, V); fp32 at least.

    targets (B, U) padded with anything, lengths and target_lengths (B,). An empty target is allowed. Infeasible
    utterances give inf: drop them beforehand, see `required_frames`.
    """
    log_probs = log_probs if log_probs.dtype == torch.float64 else log_probs.float()
    padded = targets.masked_fill(torch.arange(targets.shape[1], device=targets.device) >= target_lengths[:, None], 1)
    return F.ctc_loss(log_probs.transpose(0, 1), padded, lengths, target_lengths, blank=BLANK, reduction="none")


class Token(NamedTuple):
    """A label and the frames it covers: [start, end)."""

    label: int
    start: int
    end: int


def greedy(log_probs: Tensor, lengths: Tensor) -> list[list[Token]]:
    """The labels of the best path, with their frames. log_probs or logits (B, T, V), lengths (B,)."""
    return [_collapse(path[:n]) for path, n in zip(log_probs.argmax(-1).tolist(), lengths.tolist(), strict=True)]


def align(log_probs: Tensor, targets: list[int]) -> list[Token]:
    """The best path that gives `targets`, for one utterance: log_probs (T, V). Raises ValueError if infeasible."""
    if not targets:
        return []
    target = torch.tensor([targets], device=log_probs.device)
    needed = int(required_frames(target, torch.tensor([len(targets)], device=log_probs.device)))
    if len(log_probs) < needed:
        raise ValueError(f"{len(targets)} labels need {needed} frames, there are {len(log_probs)}")
    path, _ = AF.forced_align(log_probs[None].float(), target.int(), blank=BLANK)
    return _collapse(path[0].tolist())


def _collapse(path: list[int]) -> list[Token]:
    tokens: list[Token] = []
    previous = BLANK
    for t, label in enumerate(path):
        if label != BLANK and label == previous:
            tokens[-1] = tokens[-1]._replace(end=t + 1)
        elif label != BLANK:
            tokens.append(Token(label, t, t + 1))
        previous = label
    return tokens


def word_times(tokens: list[Token], decode) -> list[tuple[str, int, int]]:
    """(word, first frame, last frame + 1) from tokens in order; decode: a tokenizer's decode.

    A token belongs to the word that decoding all tokens up to it ends in, so it works for every kind of tokenizer.
    """
    words: list[tuple[str, int, int]] = []
    for i, token in enumerate(tokens):
        so_far = decode([t.label for t in tokens[: i + 1]]).split()
        if len(so_far) > len(words):
            words.append((so_far[-1], token.start, token.end))
        elif words and so_far[-1] != words[-1][0]:  # not for a space
            words[-1] = (so_far[-1], words[-1][1], token.end)
    return words
