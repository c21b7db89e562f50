"""Beam search for a transducer, with a language model.

Saon et al. 2020, "Alignment-length synchronous decoding for RNN transducer".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from common.ctc import BLANK, NO_FUSION, Fusion, Hypothesis, Labels, Token, log_add
from common.rnnt import Joint, Predictor, align, greedy


def search(
    predictor: Predictor,
    joint: Joint,
    encoded: Tensor,
    lengths: Tensor,
    beam: int | None = None,
    **fusion,
) -> list[list[Token]]:
    """The transcript of each utterance: greedy, or with a beam by `beam_search`.

    encoded (B, T, D) of joint.encode, lengths (B,); fusion: the fields of `Fusion`. The
    frame of a label is the one at which it is emitted, with a beam the expected one.
    """
    if beam is None:
        return greedy(predictor, joint, encoded, lengths)
    found = []
    for row, n in zip(encoded, lengths.tolist(), strict=True):
        labels = []
        if n > 0:
            best = beam_search(predictor, joint, row[:n], beam, fusion=Fusion(**fusion))[0]
            labels = best.labels
        found.append(align(predictor, joint, row[:n], labels))
    return found


@torch.inference_mode()
def beam_search(
    predictor: Predictor,
    joint: Joint,
    encoded: Tensor,
    beam: int | None = 16,
    longest: int | None = None,
    fusion: Fusion = NO_FUSION,
) -> list[Hypothesis]:
    """The best label sequences y of one utterance, encoded (T, D).

        score(y) = log p(y | x) + lm_weight log p_lm(y) + bonus len(y)

    Returns at most `beam` of them, the best one first. Hypotheses are compared after
    equally many steps, where labels and blanks both count as a step (alignment-length
    synchronous decoding, Saon et al. 2020): after i steps, a hypothesis with u labels
    stands at frame i - u. Alignments with the same labels add up. After each step the
    best `beam` hypotheses are kept. With None for the beam it is exact among sequences
    of at most `longest` labels (by default 4 T).

    lm(prefixes, ended) returns log p for each of N prefixes. If they have ended, it is
    that of the whole text; otherwise it is that of all texts that begin so, which must
    not be smaller. A hypothesis is passed to it once it has been kept; before, its
    parent's value stands in for it. So finished hypotheses compete without the value of
    their last label and their end, and only the last `beam` of them get it.
    """
    T = len(encoded)
    longest = 4 * T if longest is None else longest
    scorer = _Scorer(fusion, beam)
    output, state = predictor(torch.full((1, 1), BLANK, device=encoded.device))
    outputs = {(): (joint.predict(output)[0, 0], state)}  # labels -> W_p g (D,), LSTM state
    kept = {(): 0.0}  # labels -> log p
    finished: dict[Labels, float] = {}
    for i in range(T + longest):
        new = [y for y in kept if y not in outputs]  # each one's parent is in outputs
        if new:
            outputs |= advance(predictor, joint, new, outputs)
            scorer.ask_lm(new, ended=False)
        outputs = {y: outputs[y] for y in kept}
        log_p = log_probs_after(joint, encoded, i, kept, outputs)  # (N, V)
        extended = next_step(log_p, list(kept), scorer, longest)
        ended = {y: p for y, p in extended.items() if i + 1 - len(y) == T}
        running = {y: p for y, p in extended.items() if i + 1 - len(y) < T}
        finished = scorer.best(finished | ended)
        kept = scorer.best(running)
        if not kept or scorer.is_settled(finished, kept):
            break
    scorer.ask_lm(list(finished), ended=True)
    found = [Hypothesis(list(y), scorer.score(y, p), p) for y, p in finished.items()]
    return sorted(found, key=lambda hypothesis: hypothesis.score, reverse=True)


class _Scorer:
    """Scores hypotheses, with the language model's answers so far."""

    def __init__(self, fusion: Fusion, beam: int | None):
        self.fusion, self.beam = fusion, beam
        self.lm_scores: dict[Labels, float] = {(): 0.0}  # labels -> lm_weight log p_lm

    def ask_lm(self, sequences: list[Labels], ended: bool) -> None:
        lm, weight, _ = self.fusion
        log_p = [0.0] * len(sequences)
        if lm and weight and sequences:
            log_p = lm(sequences, ended)
        for y, value in zip(sequences, log_p, strict=True):
            self.lm_scores[y] = weight * value

    def score(self, y: Labels, log_p: float) -> float:
        lm_score = self.lm_scores[y] if y in self.lm_scores else self.lm_scores[y[:-1]]
        return log_p + lm_score + self.fusion.bonus * len(y)

    def best(self, hypotheses: dict[Labels, float]) -> dict[Labels, float]:
        """The best `beam` of them."""
        ranked = sorted(hypotheses.items(), key=lambda item: self.score(*item), reverse=True)
        return dict(ranked[: self.beam])

    def is_settled(self, finished: dict[Labels, float], kept: dict[Labels, float]) -> bool:
        """Whether no kept hypothesis can still get into `finished`.

        None of their continuations gets more than all kept ones have together (unless
        bonuses outweigh what further labels cost).
        """
        if len(finished) != self.beam:
            return False
        most = log_sum(self.score(*item) for item in kept.items())
        return most < min(self.score(*item) for item in finished.items())


def log_sum(values: Iterable[float]) -> float:
    """log of the sum of e^value"""
    return functools.reduce(log_add, values, -math.inf)


def advance(predictor: Predictor, joint: Joint, new: list[Labels], outputs: dict) -> dict:
    """The prediction network after each of `new`: labels -> W_p g (D,), LSTM state.

    outputs: the same for their parents, which are all but the last label.
    """
    parents = [outputs[y[:-1]][1] for y in new]
    state = [torch.cat(parts, 1) for parts in zip(*parents, strict=True)]
    last = torch.tensor([[y[-1]] for y in new], device=joint.bias.device)
    output, (h, c) = predictor(last, tuple(state))
    predicted = joint.predict(output)[:, 0]  # (N, D)
    states = zip(h.split(1, 1), c.split(1, 1), strict=True)
    return dict(zip(new, zip(predicted, states, strict=True), strict=True))


def log_probs_after(
    joint: Joint, encoded: Tensor, i: int, kept: dict[Labels, float], outputs: dict
) -> Tensor:
    """log p of N kept hypotheses after step i with a blank or a label added, (N, V)."""
    frames = torch.tensor([i - len(y) for y in kept], device=encoded.device)
    predicted = torch.stack([outputs[y][0] for y in kept])  # (N, D)
    logits = joint(encoded[frames], predicted)  # (N, V)
    before = torch.tensor(list(kept.values()), dtype=torch.float64)[:, None]
    return before + logits.double().log_softmax(-1).cpu()


def next_step(
    log_p: Tensor, kept: list[Labels], scorer: _Scorer, longest: int
) -> dict[Labels, float]:
    """Hypotheses after one more step: all with a blank, the best ones with a label.

    log_p (N, V) of `log_probs_after`, which it overwrites. Returns labels -> log p.
    """
    extended = dict(zip(kept, log_p[:, BLANK].tolist(), strict=True))
    log_p[:, BLANK] = -math.inf
    log_p[[len(y) == longest for y in kept]] = -math.inf
    row = {y: n for n, y in enumerate(kept)}
    for y in kept:
        if y and y[:-1] in row:  # the parent with the last label of y: the same sequence
            from_parent = row[y[:-1]], y[-1]
            extended[y] = log_add(extended[y], log_p[from_parent].item())
            log_p[from_parent] = -math.inf
    # Without the bonus of the new label, which is the same for all of them.
    added = torch.tensor([scorer.score(y, 0.0) for y in kept], dtype=torch.float64)
    scores = (log_p + added[:, None]).flatten()
    most = min(scorer.beam or len(scores), len(scores))  # more of them could not be kept
    best = scores.topk(most).indices
    for index, value in zip(best.tolist(), log_p.flatten()[best].tolist(), strict=True):
        if value > -math.inf:
            n, label = divmod(index, log_p.shape[1])
            extended[*kept[n], label] = value
    return extended
