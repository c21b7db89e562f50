"""Connectionist temporal classification (Graves et al., ICML 2006): loss, feasibility, greedy and beam search, times.

A path puts one label or the blank (label 0) on every frame; removing repeats and then blanks gives the transcript:

    frames   0  1  2  3  4  5  6          path  - a a - a b b   ->   a a b
    p(y | x) = sum over all paths that give y of prod_t p(path_t | x)

Two equal labels in a row need a blank between them, so an utterance is feasible only if T >= U + repeats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor

BLANK = 0


def required_frames(targets: Tensor, target_lengths: Tensor) -> Tensor:
    """targets (B, U) -> (B,) the fewest frames that can carry them: U + number of equal neighbours."""
    inside = (
        torch.arange(1, targets.shape[1], device=targets.device) < target_lengths[:, None]
    )  # (B, U - 1)
    return target_lengths + ((targets[:, 1:] == targets[:, :-1]) & inside).sum(1)


def ctc_loss(log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
    """-log p(y | x) per utterance, (B,), in the precision of log_probs (B, T, V); fp32 at least.

    targets (B, U) padded with anything, lengths and target_lengths (B,). An empty target is allowed. Infeasible
    utterances give inf: drop them beforehand, see `required_frames`.
    """
    log_probs = log_probs if log_probs.dtype == torch.float64 else log_probs.float()
    padded = targets.masked_fill(
        torch.arange(targets.shape[1], device=targets.device) >= target_lengths[:, None], 1
    )
    return F.ctc_loss(
        log_probs.transpose(0, 1), padded, lengths, target_lengths, blank=BLANK, reduction="none"
    )


class Token(NamedTuple):
    """A label and the frames it covers: [start, end)."""

    label: int
    start: int
    end: int


def greedy(log_probs: Tensor, lengths: Tensor) -> list[list[Token]]:
    """The labels of the best path, with their frames. log_probs or logits (B, T, V), lengths (B,)."""
    return [
        _collapse(path[:n])
        for path, n in zip(log_probs.argmax(-1).tolist(), lengths.tolist(), strict=True)
    ]


class Hypothesis(NamedTuple):
    """What a beam search found: labels, its score, and log p_ctc(labels | x) over the paths that were kept."""

    labels: list[int]
    score: float
    ctc: float


NOTHING = -math.inf, -math.inf, 0.0


def _extend(
    kept: dict, blank: float, p: dict[int, float], gains: dict
) -> dict[tuple[int, ...], tuple]:
    """A frame more: each prefix as it is and with every label; prefix -> log b(y), log n(y), and what its score adds.

    blank: log p(blank); p: label -> log p; gains: prefix -> what each of these labels adds to its score.
    """
    grown = {}
    for y, (b, n, extra) in kept.items():
        grown[y] = log_add(b, n) + blank, n + p.get(y[-1], -math.inf) if y else n, extra
    for y, (b, n, extra) in kept.items():
        either, last = log_add(b, n), y[-1] if y else BLANK
        for (label, log_p), gain in zip(p.items(), gains[y], strict=True):
            longer, begun = (*y, label), (b if label == last else either) + log_p
            b_longer, n_longer, _ = grown.get(longer, NOTHING)
            grown[longer] = b_longer, log_add(n_longer, begun), extra + gain
    return grown


def prefix_beam_search(
    log_probs: Tensor,
    beam: int | None = 10,
    candidates: int | None = 20,
    blank_skip: float | None = 0.999,
    lm: Callable[[list[tuple[int, ...]]], Tensor] | None = None,
    lm_weight: float = 0.0,
    bonus: float = 0.0,
) -> list[Hypothesis]:
    """The best label sequences y of one utterance, at most `beam`, best first. Hannun et al. 2014, arXiv 1408.2873.

        score(y) = log p_ctc(y | x) + lm_weight log p_lm(y, end) + bonus len(y)

    Frame by frame, a prefix y that ends in `a` carries the probability of all paths that give it, in two sums: b(y) of
    those that end in a blank, n(y) of those that end in `a`. Only after a blank can `a` begin once more:

        the frame holds   blank   ->  y      b'(y)   = [b(y) + n(y)] p(blank)
                          a       ->  y      n'(y)   = n(y) p(a)                   it goes on
                          a       ->  y a    n'(y a) = b(y) p(a)                   it begins once more
                          c       ->  y c    n'(y c) = [b(y) + n(y)] p(c)          another label begins

    Where two give the same prefix (y a may be in the beam itself), they add up. All in natural logarithms.

    log_probs (T, V). Per frame, besides the blank, only the `candidates` most probable labels are looked at, and none
    where p(blank) > blank_skip; then the best `beam` prefixes are kept. None: all of them, so that the result is exact.
    lm(prefixes) -> (N, V), log p(next label | prefix), in column 0 that of the end. It is asked at most once per frame
    and once after the last, for all new prefixes of the beam together, and not at all if lm_weight is 0.
    """
    log_probs, size = log_probs.cpu().double(), log_probs.shape[1] - 1
    values, labels = log_probs[:, 1:].topk(
        size if candidates is None else min(candidates, size)
    )  # (T, K)
    labels += 1
    lm = lm if lm_weight else None
    next_labels: dict[
        tuple[int, ...], Tensor
    ] = {}  # prefix -> (V,), what the language model answered

    def ask() -> None:
        new = [y for y in kept if y not in next_labels]
        if lm and new:
            next_labels.update(zip(new, lm(new).cpu().double(), strict=True))

    kept = {
        (): (0.0, -math.inf, 0.0)
    }  # prefix y -> log b(y), log n(y), and what its score adds to them
    for t, blank in enumerate(log_probs[:, BLANK].tolist()):
        if blank_skip is not None and math.exp(blank) > blank_skip:
            kept = {
                y: (log_add(b, n) + blank, -math.inf, extra) for y, (b, n, extra) in kept.items()
            }
            continue
        ask()
        p = dict(zip(labels[t].tolist(), values[t].tolist(), strict=True))
        gains = {
            y: (lm_weight * next_labels[y][labels[t]] + bonus).tolist() if lm else [bonus] * len(p)
            for y in kept
        }
        possible = [
            (y, sums)
            for y, sums in _extend(kept, blank, p, gains).items()
            if sums[:2] != NOTHING[:2]
        ]
        possible.sort(key=lambda item: log_add(*item[1][:2]) + item[1][2], reverse=True)
        kept = dict(possible[:beam])
    ask()
    found = []
    for y, (b, n, extra) in kept.items():
        end = lm_weight * next_labels[y][0].item() if lm else 0.0
        found.append(Hypothesis(list(y), log_add(b, n) + extra + end, log_add(b, n)))
    return sorted(found, key=lambda hypothesis: hypothesis.score, reverse=True)


def search(
    log_probs: Tensor, lengths: Tensor, beam: int | None = None, **options
) -> list[list[Token]]:
    """What each utterance says, with its frames: greedily, or with a beam by prefix_beam_search and its options.

    log_probs (B, T, V), lengths (B,).
    """
    if beam is None:
        return greedy(log_probs, lengths)
    utterances = [row[:n] for row, n in zip(log_probs, lengths.tolist(), strict=True)]
    return [align(row, prefix_beam_search(row, beam, **options)[0].labels) for row in utterances]


def log_add(a: float, b: float) -> float:
    """log(e^a + e^b)"""
    low, high = (a, b) if a < b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


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
