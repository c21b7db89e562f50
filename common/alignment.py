"""Do the vectors of a prompt run in step with the pieces of the transcript?

A prompt whose vectors resemble the embeddings of the pieces that are spoken there has
large cosines along a line from its beginning to its end.
"""

from __future__ import annotations

from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from common import metrics


def cosines(a: Tensor, e: Tensor) -> Tensor:
    """S (T', U): cosines of a (T', E) and e (U, E), each without its mean."""
    a = F.normalize(a.float() - a.float().mean(0), dim=-1)
    e = F.normalize(e.float() - e.float().mean(0), dim=-1)
    return a @ e.T


def scores_of(S: Tensor) -> dict[str, float]:
    """For S (T', U), U > 1: do later pieces have later vectors that resemble them most?

    rho: Spearman's correlation of a piece's index j with the index of its most similar
    vector; non_decreasing: the share of steps from j to j+1 at which that index
    does not fall, and its value by chance.
    """
    best = S.argmax(0)  # (U,)
    n = len(S)
    return {
        "rho": metrics.spearman(torch.arange(len(best)), best),
        "non_decreasing": (best.diff() >= 0).double().mean().item(),
        "chance": (n + 1) / (2 * n),
    }


def report(own: dict[str, Tensor], swapped: dict[str, Tensor]) -> dict[str, float]:
    """Means of `scores_of` for the S of utterances; _swapped: beside other audio."""
    found = {}
    for maps, suffix in ((own, ""), (swapped, "_swapped")):
        scores = [scores_of(S) for S in maps.values()]
        for name in scores[0]:
            found[name + suffix] = round(fmean(score[name] for score in scores), 3)
    del found["chance_swapped"]  # as without swapping
    return found
