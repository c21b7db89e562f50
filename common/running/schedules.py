"""The learning rate over a run, as a share of its peak."""

from __future__ import annotations

import math


def one_cycle(share: float, warmup: float) -> float:
    """Linear from 0 to 1 over the first `warmup` of the run, then half a cosine to 0.

    share: how much of the run is done.
    """
    if share < warmup:
        return share / warmup
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (share - warmup) / (1 - warmup)))


def inverse_sqrt(step: int, warmup: float) -> float:
    """Linear to 1 over `warmup` steps, then in proportion to 1 / sqrt(step).

    step counts from 0. Vaswani et al. 2017.
    """
    return min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))


def learning_rate(schedule: str, warmup: float, step: int, steps: int) -> float:
    """Share of the peak rate at update `step` (counted from 0) of `steps`.

    schedule: one-cycle or inverse-sqrt.
    """
    return (
        one_cycle((step + 1) / steps, warmup)
        if schedule == "one-cycle"
        else inverse_sqrt(step, warmup)
    )
