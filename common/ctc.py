"""Connectionist temporal classification (Graves et al., ICML 2006).

A path puts one label or the blank (label 0) on every frame. Merging equal neighbours,
and then removing blanks, turns a path into a transcript y:

    frames   0  1  2  3  4  5  6          path  - a a - a b b   ->   a a b

    p(y | x) = sum over all paths that give y of prod_t p(path_t | x)

Two equal labels in a row need a blank between them. An utterance with T frames can
therefore have a transcript of U labels only if T >= U + number of equal neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor

BLANK = 0

Labels = tuple[int, ...]


class Token(NamedTuple):
    """A label and the frames that it covers: [start, end)."""

    label: int
    start: int
    end: int


class Hypothesis(NamedTuple):
    """A result of a beam search."""

    labels: list[int]
    score: float
    log_p: float  # log p(labels | x), summed over the paths or alignments that were kept


class Fusion(NamedTuple):
    """What a beam search adds to log p(y | x): lm_weight log p_lm(y) + bonus len(y)."""

    lm: Callable | None = None  # each search explains how it calls a language model
    lm_weight: float = 0.0  # 0: the language model is not called
    bonus: float = 0.0


NO_FUSION = Fusion()


def log_add(a: float, b: float) -> float:
    """log(e^a + e^b)"""
    low, high = (a, b) if a < b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


# ---------------------------------------------------------------------------------------- loss


def required_frames(targets: Tensor, target_lengths: Tensor) -> Tensor:
    """targets (B, U) -> (B,) the fewest frames: U + number of equal neighbours."""
    inside = torch.arange(1, targets.shape[1], device=targets.device) < target_lengths[:, None]
    repeats = (targets[:, 1:] == targets[:, :-1]) & inside  # (B, U - 1)
    return target_lengths + repeats.sum(1)


def ctc_loss(log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
    """-log p(y | x) of each utterance (B,), in fp32, or in fp64 if log_probs are fp64.

    log_probs (B, T, V), lengths (B,); targets (B, U) with any padding, target_lengths
    (B,). A target may be empty. If there are too few frames for a target, its loss is
    inf: leave such utterances out, see `required_frames`.
    """
    log_probs = log_probs if log_probs.dtype == torch.float64 else log_probs.float()
    behind = torch.arange(targets.shape[1], device=targets.device) >= target_lengths[:, None]
    return F.ctc_loss(
        log_probs.transpose(0, 1),  # (T, B, V)
        targets.masked_fill(behind, 1),  # any label: torch checks padding too
        lengths,
        target_lengths,
        blank=BLANK,
        reduction="none",
    )


# ------------------------------------------------------------------------------------ decoding


def greedy(log_probs: Tensor, lengths: Tensor) -> list[list[Token]]:
    """The labels of the most probable path, with their frames.

    log_probs or logits (B, T, V), lengths (B,).
    """
    paths = log_probs.argmax(-1).tolist()  # B lists of T labels
    return [collapse(path[:n]) for path, n in zip(paths, lengths.tolist(), strict=True)]


def collapse(path: Sequence[int]) -> list[Token]:
    """Merges equal neighbours of a path and removes its blanks."""
    tokens: list[Token] = []
    previous = BLANK
    for t, label in enumerate(path):
        if label != BLANK and label == previous:
            tokens[-1] = tokens[-1]._replace(end=t + 1)
        elif label != BLANK:
            tokens.append(Token(label, t, t + 1))
        previous = label
    return tokens


def search(
    log_probs: Tensor, lengths: Tensor, beam: int | None = None, **fusion
) -> list[list[Token]]:
    """The transcript of each utterance: greedy, or with a beam by `prefix_beam_search`.

    log_probs (B, T, V), lengths (B,); fusion: the fields of `Fusion`.
    """
    if beam is None:
        return greedy(log_probs, lengths)
    found = []
    for row, n in zip(log_probs, lengths.tolist(), strict=True):
        best = prefix_beam_search(row[:n], beam, fusion=Fusion(**fusion))[0]
        found.append(align(row[:n], best.labels))
    return found


def prefix_beam_search(
    log_probs: Tensor,
    beam: int | None = 10,
    candidates: int | None = 20,
    blank_skip: float | None = 0.999,
    fusion: Fusion = NO_FUSION,
) -> list[Hypothesis]:
    """The best label sequences y of one utterance. Hannun et al. 2014, arXiv 1408.2873.

        score(y) = log p(y | x) + lm_weight log p_lm(y, end) + bonus len(y)

    Returns at most `beam` of them, the best one first. log_probs (T, V). The search
    goes through the frames and keeps the best `beam` prefixes. At each frame it
    considers the blank and the `candidates` most probable labels, but no label where
    p(blank) > blank_skip. With None for all three it is exact.

    lm(prefixes) -> (N, V): log p(next label | prefix) for N prefixes, in column 0 that
    of the end. It is called at most once per frame, and once after the last one, for
    all new prefixes together.
    """
    log_probs = log_probs.cpu().double()
    blanks = log_probs[:, BLANK].tolist()
    size = log_probs.shape[1] - 1
    K = size if candidates is None else min(candidates, size)
    values, labels = log_probs[:, 1:].topk(K)  # (T, K)
    labels += 1
    lm = _CachedLM(fusion)

    kept = {(): Paths(blank=0.0, label=-math.inf, added=0.0)}
    for t, blank in enumerate(blanks):
        if blank_skip is not None and math.exp(blank) > blank_skip:
            kept = {y: Paths(x.log_p() + blank, -math.inf, x.added) for y, x in kept.items()}
            continue
        p = dict(zip(labels[t].tolist(), values[t].tolist(), strict=True))
        grown = next_frame(kept, blank, p, lm.gains(kept, labels[t]))
        ranked = sorted(grown.items(), key=lambda item: item[1].score(), reverse=True)
        kept = {y: x for y, x in ranked[:beam] if x.log_p() > -math.inf}

    ends = lm.ends(kept)
    found = [Hypothesis(list(y), x.score() + ends[y], x.log_p()) for y, x in kept.items()]
    return sorted(found, key=lambda hypothesis: hypothesis.score, reverse=True)


class Paths(NamedTuple):
    """All paths so far that give one prefix y, summed up; natural logarithms."""

    blank: float  # log b(y) of those that end in a blank
    label: float  # log n(y) of those that end in the last label of y
    added: float  # lm_weight log p_lm(y) + bonus len(y)

    def log_p(self) -> float:
        return log_add(self.blank, self.label)

    def score(self) -> float:
        return log_add(self.blank, self.label) + self.added


IMPOSSIBLE = Paths(-math.inf, -math.inf, 0.0)


def next_frame(
    kept: dict[Labels, Paths], blank: float, p: dict[int, float], gains: dict[Labels, list[float]]
) -> dict[Labels, Paths]:
    """All prefixes after one more frame: each kept one as it is, and with every label.

    A prefix y that ends in `a` has two sums: b(y) over its paths that end in a blank,
    and n(y) over those that end in `a`. Only after a blank can another `a` begin:

        label of the frame   new prefix
              blank              y       b'(y)   = [b(y) + n(y)] p(blank)
              a                  y       n'(y)   = n(y) p(a)              `a` goes on
              a                  y a     n'(y a) = b(y) p(a)              `a` once more
              c                  y c     n'(y c) = [b(y) + n(y)] p(c)     another label

    If several cases give the same prefix (y a may be a kept prefix too), they add up.
    blank: log p(blank); p: label -> log p; gains: prefix -> what each of these labels
    adds to its score.
    """
    grown = {}
    for y, paths in kept.items():
        goes_on = paths.label + p.get(y[-1], -math.inf) if y else paths.label
        grown[y] = Paths(paths.log_p() + blank, goes_on, paths.added)
    for y, paths in kept.items():
        either = paths.log_p()
        last = y[-1] if y else BLANK
        for (label, log_p), gain in zip(p.items(), gains[y], strict=True):
            longer = (*y, label)
            begins = (paths.blank if label == last else either) + log_p
            known = grown.get(longer, IMPOSSIBLE)
            grown[longer] = Paths(known.blank, log_add(known.label, begins), paths.added + gain)
    return grown


class _CachedLM:
    """A language model that is asked about every prefix at most once."""

    def __init__(self, fusion: Fusion):
        self.lm = fusion.lm if fusion.lm_weight else None
        self.weight = fusion.lm_weight
        self.bonus = fusion.bonus
        self.answers: dict[Labels, Tensor] = {}  # prefix -> (V,)

    def ask(self, prefixes: Sequence[Labels]) -> None:
        new = [y for y in prefixes if y not in self.answers]
        if new:
            self.answers.update(zip(new, self.lm(new).cpu().double(), strict=True))

    def gains(self, prefixes: Sequence[Labels], labels: Tensor) -> dict[Labels, list[float]]:
        """What each of labels (K,) adds to the score of each prefix."""
        if self.lm is None:
            return dict.fromkeys(prefixes, [self.bonus] * len(labels))
        self.ask(prefixes)
        return {y: (self.weight * self.answers[y][labels] + self.bonus).tolist() for y in prefixes}

    def ends(self, prefixes: Sequence[Labels]) -> dict[Labels, float]:
        """What the end adds to the score of each prefix."""
        if self.lm is None:
            return dict.fromkeys(prefixes, 0.0)
        self.ask(prefixes)
        return {y: self.weight * self.answers[y][0].item() for y in prefixes}


# --------------------------------------------------------------------------------------- times


def align(log_probs: Tensor, labels: list[int]) -> list[Token]:
    """The most probable path that gives `labels`: log_probs (T, V) of one utterance.

    Raises ValueError if T is too small for them.
    """
    if not labels:
        return []
    target = torch.tensor([labels], device=log_probs.device)
    needed = int(required_frames(target, torch.tensor([len(labels)], device=log_probs.device)))
    if len(log_probs) < needed:
        raise ValueError(f"{len(labels)} labels need {needed} frames, there are {len(log_probs)}")
    path, _ = AF.forced_align(log_probs[None].float(), target.int(), blank=BLANK)
    return collapse(path[0].tolist())


def word_times(
    tokens: list[Token], decode: Callable[[list[int]], str]
) -> list[tuple[str, int, int]]:
    """tokens in order -> (word, first frame, last frame + 1) for every word.

    decode: the method of a tokenizer. A token belongs to the last word of the text that
    all tokens up to it decode to; this is right for every kind of tokenizer.
    """
    words: list[tuple[str, int, int]] = []
    for i, token in enumerate(tokens):
        so_far = decode([t.label for t in tokens[: i + 1]]).split()
        if len(so_far) > len(words):
            words.append((so_far[-1], token.start, token.end))
        elif words and so_far[-1] != words[-1][0]:  # not for a space
            words[-1] = (so_far[-1], words[-1][1], token.end)
    return words
