"""Is token KD better if the student may be up to two frames late?

A stream cannot know a piece as early as a model that has read the whole utterance. Here
the student's lattice may be shifted against the teacher's, by the number of frames that
is best for the utterance, after Delayed-KD (arXiv 2505.22069), which is for CTC.

    python -m variants.streaming_aux_kd.token_kd_delay_2 --method token_kd
"""

import torch
from torch import Tensor

import streaming_aux_kd
from common.conformer import length_mask


def best_shift(
    teacher: Tensor, student: Tensor, lengths: Tensor, target_lengths: Tensor, longest: int
) -> Tensor:
    """sum_{t, u} KL(q_teacher(t, u) || q(t+d, u)) of each utterance (B,), for the best
    d of 0 ... longest.

    The best d has the smallest mean over the nodes that both lattices have; the mean is
    then scaled to all nodes. Sums would favour late shifts, which have fewer nodes.
    """
    T = teacher.shape[1]
    real_u = length_mask(target_lengths + 1, teacher.shape[2])  # (B, U+1)
    means = []
    for d in range(min(longest, T - 1) + 1):
        p = teacher[:, : T - d]
        divergence = (p.exp() * (p - student[:, d:])).sum(-1)  # (B, T-d, U+1)
        real_t = length_mask((lengths - d).clamp(min=0), T - d)  # (B, T-d)
        real = real_t[..., None] & real_u[:, None]
        nodes = real.sum((1, 2))  # (B,)
        mean = (divergence * real).sum((1, 2)) / nodes.clamp(min=1)
        if d > 0:  # an utterance of d frames has no such nodes
            mean = mean.masked_fill(nodes == 0, torch.inf)
        means.append(mean)
    return torch.stack(means).min(0).values * lengths * (target_lengths + 1)


def delayed_loss(
    teacher: Tensor, student: Tensor, lengths: Tensor, target_lengths: Tensor
) -> Tensor:
    """L_token (B,) with the best of three shifts."""
    return best_shift(teacher, student, lengths, target_lengths, longest=2)


def main(argv: list[str] | None = None) -> dict:
    return streaming_aux_kd.main(argv, replace={"token_loss": delayed_loss})


if __name__ == "__main__":
    main()
