"""Confidence intervals for the difference of two systems."""

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
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """95 % interval of rate(system) - rate(baseline) in per cent points, by a hierarchical bootstrap.

    baseline and system: (errors, counts) per (seed, utterance), each (seeds, utterances), the same utterances and seeds
    paired; the rate is sum of errors / sum of counts (words, or homophones). sessions: which conversation each
    utterance belongs to. Seeds are drawn with replacement, then whole sessions, because errors within a session are not
    independent (Bisani & Ney, ICASSP 2004, is the bootstrap over utterances).
    """
    _, session = np.unique(np.asarray(sessions), return_inverse=True)
    n_sessions, n_seeds = session.max() + 1, len(baseline[0])
    sums = np.stack(  # (baseline errors, counts, system errors, counts; seeds; sessions)
        [
            [np.bincount(session, weights=row, minlength=n_sessions) for row in np.asarray(table, dtype=float)]
            for table in (*baseline, *system)
        ]
    )

    def difference(some_seeds, some_sessions) -> float:
        wrong, count, system_wrong, system_count = sums[:, some_seeds].sum(1)[:, some_sessions].sum(1)
        return 100 * (system_wrong / max(system_count, 1) - wrong / max(count, 1))

    rng = np.random.default_rng(seed)
    drawn = [
        difference(rng.integers(n_seeds, size=n_seeds), rng.integers(n_sessions, size=n_sessions))
        for _ in range(samples)
    ]
    return Interval(difference(range(n_seeds), range(n_sessions)), *np.quantile(drawn, [0.025, 0.975]).tolist())
