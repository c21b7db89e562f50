"""Word and character error rates, homophone errors, and intervals for the difference of two systems.

Both sides of every comparison pass the normaliser `basic` (common/text.py). Rates are in per cent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import jiwer
import numpy as np

from common.text import normalise

NORMALISER = "basic"


class ErrorRate(NamedTuple):
    """Counts over a test set; `rate` is (substitutions + deletions + insertions) / words in the references."""

    substitutions: int
    deletions: int
    insertions: int
    words: int

    @property
    def rate(self) -> float:
        """In per cent; a test set without words gives 0 if nothing was recognised, else 100."""
        errors = self.substitutions + self.deletions + self.insertions
        return 100 * errors / self.words if self.words else 100.0 * (errors > 0)


def _align(reference: str, hypothesis: str) -> list[tuple[str, list[str], list[str]]]:
    """[(equal | substitute | delete | insert, reference words, hypothesis words), …] of a minimal alignment."""
    reference, hypothesis = normalise(reference).split(), normalise(hypothesis).split()
    chunks = jiwer.process_words(" ".join(reference), " ".join(hypothesis)).alignments[0]
    return [
        (c.type, reference[c.ref_start_idx : c.ref_end_idx], hypothesis[c.hyp_start_idx : c.hyp_end_idx])
        for c in chunks
    ]


def word_errors(references: Iterable[str], hypotheses: Iterable[str]) -> ErrorRate:
    counts = Counter()
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        for kind, ref_words, hyp_words in _align(reference, hypothesis):
            counts[kind] += max(len(ref_words), len(hyp_words))
    words = counts["equal"] + counts["substitute"] + counts["delete"]
    return ErrorRate(counts["substitute"], counts["delete"], counts["insert"], words)


def character_errors(references: Iterable[str], hypotheses: Iterable[str]) -> ErrorRate:
    """The same over characters; spaces do not count."""

    def spread(texts):
        return (" ".join(normalise(text).replace(" ", "")) for text in texts)

    return word_errors(spread(references), spread(hypotheses))


class HomophoneErrors(NamedTuple):
    """How often the wrong twin was written. `chance`: always writing the twin more frequent in the references."""

    wrong: int
    count: int
    chance: float  # per cent

    @property
    def rate(self) -> float:
        return 100 * self.wrong / self.count if self.count else 0.0


def homophone_errors(references: Iterable[str], hypotheses: Iterable[str], twins: dict[str, str]) -> HomophoneErrors:
    """Among reference homophones aligned with themselves or their twin, those that came out as the twin.

    twins: word -> twin, both ways. Homophones that were misheard altogether count in the word error rate only.
    """
    meant, wrong = Counter(), 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        for kind, ref_words, hyp_words in _align(reference, hypothesis):
            if kind in ("equal", "substitute"):
                for ref, hyp in zip(ref_words, hyp_words, strict=True):
                    if ref in twins and hyp in (ref, twins[ref]):
                        meant[ref] += 1
                        wrong += hyp != ref
    count = meant.total()
    rarer = sum(min(meant[word], meant[twin]) for word, twin in twins.items()) / 2  # every pair came up twice
    return HomophoneErrors(wrong, count, 100 * rarer / count if count else 0.0)


def score(
    references: dict[str, str], found: dict[str, str], twins: dict[str, str]
) -> tuple[ErrorRate, HomophoneErrors]:
    """Word and homophone errors, utterance -> text, over the utterances that were found."""
    pairs = [(text, found[name]) for name, text in references.items() if name in found]
    texts, hypotheses = [text for text, _ in pairs], [hypothesis for _, hypothesis in pairs]
    return word_errors(texts, hypotheses), homophone_errors(texts, hypotheses, twins)


class Interval(NamedTuple):
    difference: float
    low: float
    high: float


def bootstrap_difference(
    baseline: tuple[np.ndarray, np.ndarray],
    system: tuple[np.ndarray, np.ndarray],
    sessions: list[str],
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """95 % interval of rate(system) - rate(baseline) in per cent points, by a hierarchical bootstrap.

    baseline and system: (errors, counts) per (seed, utterance), each (seeds, utterances), the same utterances and seeds
    paired; the rate is sum of errors / sum of counts (words, or homophones that were heard). sessions: which
    conversation each utterance belongs to. Seeds are drawn with replacement, then whole sessions, because errors within
    a session are not independent (Bisani & Ney, ICASSP 2004, is the bootstrap over utterances).
    """
    _, session = np.unique(np.asarray(sessions), return_inverse=True)
    n_sessions, n_seeds = session.max() + 1, len(baseline[0])
    sums = np.stack(  # (baseline errors, counts, system errors, counts; seeds; sessions)
        [
            [np.bincount(session, weights=row, minlength=n_sessions) for row in np.asarray(table, dtype=float)]
            for table in (*baseline, *system)
        ]
    )

    def difference(some: np.ndarray) -> float:
        wrong, count, system_wrong, system_count = some.sum((1, 2))
        return 100 * (system_wrong / max(system_count, 1) - wrong / max(count, 1))

    rng = np.random.default_rng(seed)
    drawn = [
        difference(sums[:, rng.integers(n_seeds, size=n_seeds)][:, :, rng.integers(n_sessions, size=n_sessions)])
        for _ in range(samples)
    ]
    return Interval(difference(sums), *np.quantile(drawn, [0.025, 0.975]).tolist())


def side_by_side(reference: str, hypothesis: str) -> str:
    """Two aligned lines; what differs is in capitals, what is missing is stars.

    REF: the KNIGHT rode *** home
    HYP: the NIGHT  rode OUT home
    """
    rows = [], []
    for kind, ref_words, hyp_words in _align(reference, hypothesis):
        n = max(len(ref_words), len(hyp_words))
        for ref, hyp in zip(ref_words or [""] * n, hyp_words or [""] * n, strict=True):
            if kind != "equal":
                ref, hyp = ref.upper(), hyp.upper()
            width = max(len(ref), len(hyp))
            rows[0].append(ref.ljust(width) if ref else "*" * width)
            rows[1].append(hyp.ljust(width) if hyp else "*" * width)
    return f"REF: {' '.join(rows[0])}\nHYP: {' '.join(rows[1])}"


def read_side_by_side(text: str) -> dict[str, tuple[str, str]]:
    """{name: (reference, hypothesis)} from blocks of a name and the two lines of `side_by_side`."""
    found = {}
    for block in filter(None, text.strip().split("\n\n")):
        name, reference, hypothesis = block.strip().splitlines()
        both = (line.partition(":")[2].replace("*", "").lower().split() for line in (reference, hypothesis))
        found[name] = tuple(map(" ".join, both))
    return found
