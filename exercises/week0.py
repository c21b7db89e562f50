"""Week 0: what every recogniser here is built on, by hand and for one utterance.

These functions are for understanding. The scripts use faster ones, see common/ctc.py,
common/rnnt.py and common/metrics.py.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ctc_alpha(log_probs: Tensor, target: list[int]) -> Tensor:
    """log alpha of CTC: log_probs (T, V), target of U labels -> (T, 2 U + 1).

    Between the labels, before and behind them stands a blank (label 0): the states are
    - y_1 - y_2 - ... y_U -. alpha(t, s) sums the probabilities of all paths over the
    frames 0 ... t that end in state s. A path begins in one of the first two states. It
    stays in its state, goes to the next one, or leaves out a blank between two
    different labels. What is impossible has -inf.
    """
    states = [0]
    for label in target:
        states += [label, 0]
    alpha = torch.full((len(log_probs), len(states)), -torch.inf, dtype=log_probs.dtype)
    alpha[0, 0] = log_probs[0, 0]
    if target:
        alpha[0, 1] = log_probs[0, target[0]]
    for t in range(1, len(log_probs)):
        for s, label in enumerate(states):
            before = [alpha[t - 1, s]]
            if s >= 1:
                before.append(alpha[t - 1, s - 1])
            if s >= 2 and label != 0 and label != states[s - 2]:
                before.append(alpha[t - 1, s - 2])
            alpha[t, s] = torch.stack(before).logsumexp(0) + log_probs[t, label]
    return alpha


def transducer_alpha(blank: Tensor, label: Tensor) -> Tensor:
    """log alpha of a transducer: blank, label (T, U+1) -> (T, U+1).

    blank[t, u] is log p(blank | t, u), which goes on to frame t+1. label[t, u] is
    log p(y_(u+1) | t, u), which stays at frame t; its last column means nothing.
    alpha(t, u) sums the probabilities of all ways from the node (0, 0) to (t, u),
    without what is emitted at (t, u) itself.
    """
    T, columns = blank.shape
    alpha = torch.full((T, columns), -torch.inf, dtype=blank.dtype)
    alpha[0, 0] = 0.0
    for t in range(T):
        for u in range(columns):
            if t > 0:
                alpha[t, u] = torch.logaddexp(alpha[t, u], alpha[t - 1, u] + blank[t - 1, u])
            if u > 0:
                alpha[t, u] = torch.logaddexp(alpha[t, u], alpha[t, u - 1] + label[t, u - 1])
    return alpha


def word_error_rate(references: list[str], hypotheses: list[str]) -> float:
    """The word error rate of a test set in per cent.

    The errors of a sentence are the fewest substitutions, deletions and insertions of
    words that turn its reference into its hypothesis. The rate is the number of all
    errors divided by the number of all words of the references.
    """
    errors = 0
    words = 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        errors += edits(reference.split(), hypothesis.split())
        words += len(reference.split())
    return 100 * errors / words


def edits(reference: list[str], hypothesis: list[str]) -> int:
    """The fewest edits that turn one list of words into the other."""
    row = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference, 1):
        above = row
        row = [i]
        for j, written in enumerate(hypothesis, 1):
            same = above[j - 1] + (word != written)
            row.append(min(same, above[j] + 1, row[j - 1] + 1))
    return row[-1]
