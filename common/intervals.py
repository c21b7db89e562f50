"""Confidence intervals for the difference between two systems."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    difference: float
    low: float
    high: float


def bootstrap_difference(
    baseline: tuple[np.ndarray, np.ndarray],
    system: tuple[np.ndarray, np.ndarray],
    sessions: list[str],
    languages: list[str] | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The 95 % interval of rate(system) - rate(baseline) in per cent points, by a
    hierarchical bootstrap.

    baseline and system: (errors, counts) per (seed, utterance), each (seeds,
    utterances), of the same utterances and with the same seeds; the rate is the sum of
    errors / the sum of counts (words, or homophones). sessions: the conversation of
    each utterance. Seeds are drawn with replacement, then whole sessions, because
    errors within a session are not independent (Bisani and Ney, ICASSP 2004, draw
    utterances). languages: of each utterance; then sessions are drawn within each
    language, and the rate is the unweighted mean of the languages' rates.
    """
    names, language = np.unique(np.asarray(languages or [""] * len(sessions)), return_inverse=True)
    _, session = np.unique(np.asarray(sessions), return_inverse=True)
    sums = _sums_by_session([*baseline, *system], session)
    of_languages = []  # (4; seeds; sessions) each
    for i in range(len(names)):
        of_languages.append(sums[:, :, np.unique(session[language == i])])
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(samples):
        seeds_drawn = _draw(rng, len(baseline[0]))
        sessions_drawn = [_draw(rng, part.shape[2]) for part in of_languages]
        drawn.append(_difference(of_languages, seeds_drawn, sessions_drawn))
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    each_seed = np.ones(len(baseline[0]))
    each_session = [np.ones(part.shape[2]) for part in of_languages]
    return Interval(_difference(of_languages, each_seed, each_session), low, high)


def _sums_by_session(tables: list[np.ndarray], session: np.ndarray) -> np.ndarray:
    """Four tables (seeds, utterances), the baseline's errors and counts, then the
    system's -> (4; seeds; sessions)."""
    n_sessions = session.max() + 1
    sums = []
    for table in tables:
        rows = np.asarray(table, dtype=float)
        sums.append([np.bincount(session, weights=row, minlength=n_sessions) for row in rows])
    return np.array(sums)


def _draw(rng: np.random.Generator, n: int) -> np.ndarray:
    """How often each of n things is drawn in n draws with replacement: (n,)."""
    return np.bincount(rng.integers(n, size=n), minlength=n).astype(float)


def _difference(
    of_languages: list[np.ndarray], seeds_drawn: np.ndarray, sessions_drawn: list[np.ndarray]
) -> float:
    differences = []
    for part, times in zip(of_languages, sessions_drawn, strict=True):
        wrong, count, system_wrong, system_count = part @ times @ seeds_drawn
        differences.append(system_wrong / max(system_count, 1) - wrong / max(count, 1))
    return 100 * float(np.mean(differences))
