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
    languages: list[str] | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """95 % interval of rate(system) - rate(baseline) in per cent points, by a hierarchical bootstrap.

    baseline and system: (errors, counts) per (seed, utterance), each (seeds, utterances), the same utterances and seeds
    paired; the rate is sum of errors / sum of counts (words, or homophones). sessions: which conversation each
    utterance belongs to. Seeds are drawn with replacement, then whole sessions, because errors within a session are not
    independent (Bisani & Ney, ICASSP 2004, is the bootstrap over utterances). languages: of each utterance; sessions
    are then drawn within them, and the rate is the unweighted mean of theirs.
    """
    names, language = np.unique(np.asarray(languages or [""] * len(sessions)), return_inverse=True)
    _, session = np.unique(np.asarray(sessions), return_inverse=True)
    n_sessions, n_seeds = session.max() + 1, len(baseline[0])
    sums = np.stack(  # (baseline errors, counts, system errors, counts; seeds; sessions)
        [
            [
                np.bincount(session, weights=row, minlength=n_sessions)
                for row in np.asarray(table, dtype=float)
            ]
            for table in (*baseline, *system)
        ]
    )

    within = [
        np.unique(session[language == i]) for i in range(len(names))
    ]  # the sessions of each language

    def difference(some_seeds, some_sessions: list[np.ndarray]) -> float:
        by_session, differences = sums[:, some_seeds].sum(1), []
        for some in some_sessions:
            wrong, count, system_wrong, system_count = by_session[:, some].sum(1)
            differences.append(system_wrong / max(system_count, 1) - wrong / max(count, 1))
        return 100 * float(np.mean(differences))

    rng = np.random.default_rng(seed)
    drawn = [
        difference(
            rng.integers(n_seeds, size=n_seeds),
            [some[rng.integers(len(some), size=len(some))] for some in within],
        )
        for _ in range(samples)
    ]
    return Interval(
        difference(range(n_seeds), within), *np.quantile(drawn, [0.025, 0.975]).tolist()
    )
