"""The transducer (Graves, arXiv 1211.3711): prediction and joint network, exact loss in little memory, decoding, times.

h_t is the encoder at frame t, g_u the prediction network after u labels, and the joint network turns each pair into
p(. | t, u). An alignment walks through the lattice from (0, 0) to its end: a blank goes on to the next frame, a label
stays at the frame. All alignments together are the probability of the transcript; here U = 3 labels, T = 5 frames:

    u
    3   .   .   .   .   o-->  the end: one last blank at (T-1, U)
                        |
    2   .   .   o---o---o     -->  blank at (t, u):  log p(blank | t, u)      = blank[t, u]
                |              |   label at (t, u):  log p(y_{u+1} | t, u)    = label[t, u]
    1   o---o---o   .   .
        |
    0   o   .   .   .   .
        0   1   2   3   4   t

    from (0, 0) to (t, u)   alpha(t, u) = log(e^(alpha(t-1, u) + blank[t-1, u]) + e^(alpha(t, u-1) + label[t, u-1]))
    from (t, u) to the end  beta(t, u)  = log(e^(blank[t, u] + beta(t+1, u)) + e^(label[t, u] + beta(t, u+1)))
    loss                    -log p(y|x) = -beta(0, 0)
    emission posterior      gamma(t, u) = p(label u+1 leaves at frame t | x, y)
                                        = e^(alpha(t, u) + label[t, u] + beta(t, u+1) - beta(0, 0))

gamma is minus the derivative of the loss by label[t, u], and sums to 1 over t for every u < U. With its like for the
blanks it gives the derivative by every logit, so nobody has to differentiate the recursion.

The tensor of all logits (B, T, U+1, V) is what makes a transducer heavy. `transducer_loss` never holds it: it makes the
logits for a few frames at a time, keeps only blank[t, u] and label[t, u], and makes them again for the gradient.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from common.conformer import length_mask
from common.ctc import BLANK, Token, log_add

# ---------------------------------------------------------------------------------------------------------- networks


class Predictor(nn.Module):
    """The prediction network: an embedding and an LSTM over the labels so far; label 0, the blank, begins them."""

    def __init__(self, vocabulary: int, embedding_dim: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding_dim)
        self.lstm = nn.LSTM(embedding_dim, dim, batch_first=True)

    def forward(
        self, labels: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple]:
        """labels (B, N) -> outputs (B, N, D) after each of them, and the state (2 x (1, B, D)) with which to go on."""
        with torch.autocast(
            labels.device.type, enabled=False
        ):  # cuDNN's LSTM would take fp16 for bf16
            return self.lstm(self.embedding(labels), state)

    def all_states(self, targets: Tensor) -> Tensor:
        """targets (B, U) -> g_0 … g_U (B, U+1, D)."""
        return self(F.pad(targets, (1, 0), value=BLANK))[0]


class Joint(nn.Module):
    """The joint network: logits = Linear(tanh(W_e h_t + W_p g_u + b)), or tanh(W_e h_t * (W_p g_u + b_p) + b).

    Adding is Graves' own; the elementwise product is Saon et al. 2021, arXiv 2103.11325. b_p, which begins as 1, is
    ours: the product with next to nothing that W_p g_u is at first hides the encoder, and the transducer learned to
    spell without listening. encode and predict come first, once for every h_t and every g_u, so that a pair (t, u)
    costs only what depends on both.
    """

    def __init__(
        self,
        encoder_dim: int,
        predictor_dim: int,
        dim: int,
        vocabulary: int,
        multiply: bool = False,
    ):
        super().__init__()
        self.encode = nn.Linear(encoder_dim, dim, bias=False)
        self.predict = nn.Linear(predictor_dim, dim, bias=multiply)
        if multiply:
            nn.init.ones_(self.predict.bias)
        self.bias = nn.Parameter(torch.zeros(dim))
        self.output = nn.Linear(dim, vocabulary)
        self.multiply = multiply

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """What encode and predict say, (…, D) of shapes that broadcast -> logits (…, V)."""
        combined = encoded * predicted if self.multiply else encoded + predicted
        return self.output(torch.tanh(combined + self.bias.to(combined.dtype)))


# -------------------------------------------------------------------------------------------------------------- loss


class Lattice(NamedTuple):
    loss: Tensor  # (B,) -log p(y | x)
    blanks: Tensor  # (B, T, U+1) p(a blank leaves (t, u) | x, y)
    gamma: Tensor  # (B, T, U+1) p(a label leaves (t, u) | x, y); 0 at u = U


@torch.no_grad()
def lattice(blank: Tensor, label: Tensor, lengths: Tensor, target_lengths: Tensor) -> Lattice:
    """Sums over all alignments. blank, label (B, T, U+1) log-probabilities; lengths, target_lengths (B,).

    In float64. With C(t, u) = sum over s < t of blank[s, u], a row of the lattice follows from the one below at once,

        alpha(t, u) = C(t, u) + log sum over s <= t of e^(alpha(s, u-1) + label[s, u-1] - C(s, u))

    and beta likewise from the other end: U steps over u, each a cumulative sum over t, and no steps over t. A blank
    less probable than e^-10000 counts as that probable, to keep differences of C finite.
    """
    B, T, U = *blank.shape[:2], blank.shape[2] - 1
    u = torch.arange(U + 1, device=blank.device)
    real = (
        length_mask(lengths, T)[:, :, None] & (u <= target_lengths[:, None])[:, None]
    )  # (B, T, U+1)
    blank = (
        blank.double().masked_fill(~real, 0.0).clamp(min=-1e4).permute(2, 0, 1)
    )  # (U+1, B, T), t side by side
    label = (
        label.double()
        .masked_fill(~real | (u == target_lengths[:, None])[:, None], -math.inf)
        .permute(2, 0, 1)
    )
    C = F.pad(blank.cumsum(2), (1, 0))  # (U+1, B, T+1)

    alpha = torch.empty(U + 1, B, T, dtype=torch.float64, device=blank.device)
    alpha[0] = C[0, :, :T]
    for i in range(1, U + 1):
        alpha[i] = C[i, :, :T] + (alpha[i - 1] + label[i - 1] - C[i, :, :T]).logcumsumexp(1)

    beta = torch.full_like(C, -math.inf)
    end = (
        target_lengths,
        torch.arange(B, device=blank.device),
        lengths,
    )  # frame T of row U, behind the last blank
    beta[end] = C[end]  # until its turn comes, a row of beta holds what enters it
    for i in range(U, -1, -1):
        if i < U:
            entered = C[i, :, :T] + label[i] + beta[i + 1, :, :T]
            beta[i, :, :T] = torch.logaddexp(beta[i, :, :T], entered)
        beta[i] = beta[i].flip(1).logcumsumexp(1).flip(1) - C[i]

    log_p = beta[0, :, 0]
    above = F.pad(beta[1:, :, :T], (0, 0, 0, 0, 0, 1), value=-math.inf)
    total = log_p.masked_fill(log_p == -math.inf, math.inf)[
        :, None
    ]  # without any alignment, all posteriors are 0
    gamma = (alpha + label + above - total).exp()
    blanks = (alpha + blank + beta[:, :, 1:] - total).exp().masked_fill(~real.permute(2, 0, 1), 0.0)
    # Far from the path all is next to 0. Subnormal numbers make a CPU's matrix products ten times slower.
    blanks, gamma = (F.threshold(x.permute(1, 2, 0), 1e-20, 0.0) for x in (blanks, gamma))
    return Lattice(-log_p, blanks, gamma)


def next_labels(targets: Tensor, T: int, blank: int = BLANK) -> Tensor:
    """targets (B, U) -> (B, T, U+1, 1): the label that may leave (t, u); the blank at u = U, where there is none."""
    return F.pad(targets, (0, 1), value=blank)[:, None, :, None].expand(-1, T, -1, -1)


def pick(log_probs: Tensor, targets: Tensor, blank: int = BLANK) -> Tensor:
    """log_probs (B, T, U+1, V), targets (B, U) -> log p(blank) and log p(y_{u+1}), together (2, B, T, U+1)."""
    label = log_probs.gather(-1, next_labels(targets, log_probs.shape[1], blank))[..., 0]
    return torch.stack([log_probs[..., blank], label])


def derivative(
    probs: Tensor, targets: Tensor, blanks: Tensor, gamma: Tensor, blank: int = BLANK
) -> Tensor:
    """The loss by the logits, (B, T, U+1, V): (blanks + gamma) p(v) - blanks [v = blank] - gamma [v = y_{u+1}].

    It takes the place of probs p(v); targets (B, U), blanks and gamma (B, T, U+1).
    """
    blanks, gamma = blanks.to(probs.dtype), gamma.to(probs.dtype)
    result = probs.mul_((blanks + gamma)[..., None])
    result[..., blank] -= blanks
    return result.scatter_add_(-1, next_labels(targets, probs.shape[1], blank), -gamma[..., None])


class _Loss(torch.autograd.Function):
    """The loss of joint(encoded, predicted), whose logits are made `tile` frames at a time, and again in backward."""

    @staticmethod
    def forward(ctx, joint, tile, encoded, predicted, targets, lengths, target_lengths, *weights):
        device, dtype = encoded.device.type, torch.promote_types(encoded.dtype, torch.float32)
        B, T = encoded.shape[:2]
        # Made once: small tensors kept from every tile would lie between the freed ones and keep the C library from
        # using that memory again, and the process would grow as if it held all logits.
        picked = encoded.new_empty(2, B, T, predicted.shape[2], dtype=dtype)
        for t in range(0, T, tile):
            log_probs = joint(encoded[:, t : t + tile], predicted).log_softmax(-1, dtype)
            picked[:, :, t : t + tile] = pick(log_probs, targets)
        loss, blanks, gamma = lattice(*picked, lengths, target_lengths)
        ctx.save_for_backward(encoded, predicted, targets, blanks, gamma)
        ctx.joint, ctx.tile, ctx.dtype, ctx.weights = joint, tile, dtype, weights
        ctx.autocast = dict(  # backward has to go the same way
            device_type=device,
            enabled=torch.is_autocast_enabled(device),
            dtype=torch.get_autocast_dtype(device),
        )
        gamma = gamma[:, :, :-1].to(dtype)
        ctx.mark_non_differentiable(gamma)
        return loss.to(dtype), gamma

    @staticmethod
    @once_differentiable
    def backward(ctx, scale, _):
        encoded, predicted, targets, *posteriors = ctx.saved_tensors
        blanks, gamma = (scale.double()[:, None, None] * x for x in posteriors)
        inputs = [predicted.detach().requires_grad_(), *ctx.weights]
        sums = [
            torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in inputs
        ]
        encoded_gradient = torch.empty_like(encoded)
        for t in range(0, encoded.shape[1], ctx.tile):
            frames = slice(t, t + ctx.tile)
            part = encoded[:, frames].detach().requires_grad_()
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                logits = ctx.joint(part, inputs[0])
            by_logits = derivative(
                logits.softmax(-1, ctx.dtype), targets, blanks[:, frames], gamma[:, frames]
            )
            gradients = torch.autograd.grad(logits, [part, *inputs], by_logits.to(logits.dtype))
            encoded_gradient[:, frames] = gradients[0]
            for total, gradient in zip(sums, gradients[1:], strict=True):
                total += gradient
        predicted_gradient, *weight_gradients = (
            total.to(x.dtype) for total, x in zip(sums, inputs, strict=True)
        )
        return None, None, encoded_gradient, predicted_gradient, None, None, None, *weight_gradients


def tile_size(device: torch.device, *frame: int) -> int:
    """How many frames to hold at once, when one needs so many numbers: near a CPU's caches, enough work for a GPU."""
    return max(1, (2**21 if device.type == "cpu" else 2**25) // max(1, math.prod(frame)))


def transducer_loss(
    joint: Joint, encoded: Tensor, predicted: Tensor, targets: Tensor, lengths: Tensor, target_lengths: Tensor,
    tile: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """-log p(y | x) per utterance (B,), and gamma (B, T, U), detached. Exact, whatever the tile (frames held at once).

    encoded (B, T, D) and predicted (B, U+1, D) of joint.encode and joint.predict; targets (B, U) padded with any label,
    lengths and target_lengths (B,). Under autocast the joint network runs in its type; what follows is fp32, and the
    lattice float64. Where a logit is NaN, so are the loss and its gradient.
    """
    numbers = (
        joint.output.out_features + 3 * joint.output.in_features
    )  # per pair (t, u): logits, and what gives them
    tile = tile or tile_size(encoded.device, len(encoded), predicted.shape[1], numbers)
    weights = [
        weight for weight in (joint.bias, *joint.output.parameters()) if weight.requires_grad
    ]
    pairs = encoded[:, :, None], predicted[:, None]
    return _Loss.apply(joint, tile, *pairs, targets, lengths, target_lengths, *weights)


class _LossOfLogits(torch.autograd.Function):
    """The loss of logits that are given whole; only what is computed from them is made a tile at a time."""

    @staticmethod
    def forward(ctx, logits, targets, lengths, target_lengths, blank, limit, normalise):
        tile = tile_size(logits.device, len(logits), *logits.shape[2:])
        dtype = torch.promote_types(logits.dtype, torch.float32)
        picked = logits.new_empty(2, *logits.shape[:3], dtype=dtype)
        for t in range(0, logits.shape[1], tile):
            part = logits[:, t : t + tile]
            picked[:, :, t : t + tile] = pick(
                part.log_softmax(-1, dtype) if normalise else part, targets, blank
            )
        loss, blanks, gamma = lattice(*picked, lengths, target_lengths)
        ctx.save_for_backward(logits, targets, blanks, gamma)
        ctx.options = tile, dtype, blank, limit, normalise
        return loss.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, scale):
        logits, targets, blanks, gamma = ctx.saved_tensors
        tile, dtype, blank, limit, normalise = ctx.options
        result = torch.empty_like(logits)
        for t in range(0, logits.shape[1], tile):
            frames = slice(t, t + tile)
            part = logits[:, frames]
            # The derivative of log_softmax; of log-probabilities, which are taken as they are, there is none.
            probs = part.softmax(-1, dtype) if normalise else torch.zeros_like(part, dtype=dtype)
            by_logits = derivative(
                probs, targets, blanks[:, frames], gamma[:, frames], blank
            ).clamp_(-limit, limit)
            result[:, frames] = by_logits.mul_(scale[:, None, None, None])
        return result, None, None, None, None, None, None


def rnnt_loss(
    logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int = -1, clamp: float = -1,
    reduction: str = "mean", fused_log_softmax: bool = True,
) -> Tensor:  # fmt: skip
    """As torchaudio.functional.rnnt_loss, which it can replace: logits (B, T, U+1, V), targets (B, U), lengths (B,).

    clamp > 0 limits every derivative by a logit; reduction: mean | sum over utterances, or none: (B,);
    fused_log_softmax False: the logits are log-probabilities. Raises ValueError where a logit is NaN, and for another
    reduction.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is mean, sum or none, not {reduction!r}")
    targets = targets.long() * length_mask(
        target_lengths, targets.shape[1]
    )  # whatever they are padded with
    options = blank % logits.shape[-1], clamp if clamp > 0 else math.inf, fused_log_softmax
    losses = _LossOfLogits.apply(logits, targets, logit_lengths, target_lengths, *options)
    if losses.isnan().any():
        raise ValueError(
            f"the logits of utterances {losses.isnan().nonzero()[:, 0].tolist()} contain NaN"
        )
    return losses if reduction == "none" else getattr(losses, reduction)()


# ---------------------------------------------------------------------------------------------------------- decoding


@torch.inference_mode()
def greedy(
    predictor: Predictor,
    joint: Joint,
    encoded: Tensor,
    lengths: Tensor,
    per_frame: int = 10,
    ahead: int = 8,
) -> list[list[Token]]:
    """At every frame the most probable label, until that is the blank. All utterances go on together.

    encoded (B, T, D) of joint.encode, lengths (B,). Where an utterance has found a label, its prediction network moves
    on; until then it looks `ahead` frames at once ("label looping", Bataev et al. 2024, arXiv 2406.06220), so that a
    batch takes about max over utterances of (U + T / ahead) steps. After `per_frame` labels at a frame it must go on.
    """
    B, T = encoded.shape[:2]
    rows, window = (
        torch.arange(B, device=encoded.device)[:, None],
        torch.arange(ahead, device=encoded.device),
    )
    tokens: list[list[Token]] = [[] for _ in range(B)]
    t, count = (
        torch.zeros_like(lengths),
        torch.zeros_like(lengths),
    )  # the frame, and how many labels it has given
    output, state = predictor(torch.full_like(rows, BLANK))
    predicted = joint.predict(output)  # (B, 1, D)
    while (t < lengths).any():
        frames = t[:, None] + window  # (B, ahead)
        best = joint(encoded[rows, frames.clamp(max=T - 1)], predicted).argmax(-1)
        best[:, 0].masked_fill_(count >= per_frame, BLANK)
        is_label = (best != BLANK) & (frames < lengths[:, None])
        found, first = is_label.any(1), is_label.int().argmax(1)
        label = torch.where(found, best[rows[:, 0], first], BLANK)
        skipped = torch.where(found, first, ahead)
        count = count.masked_fill(skipped > 0, 0) + found
        t = t + skipped
        for hypothesis, emitted, frame in zip(tokens, label.tolist(), t.tolist(), strict=True):
            if emitted != BLANK:
                hypothesis.append(Token(emitted, frame, frame + 1))
        output, moved = predictor(label[:, None], state)
        state = tuple(
            torch.where(found[:, None], new, old) for new, old in zip(moved, state, strict=True)
        )
        predicted = torch.where(found[:, None, None], joint.predict(output), predicted)
    return tokens


Labels = tuple[int, ...]


class Hypothesis(NamedTuple):
    """What a beam search found: labels, its score, and log p(labels | x) over the alignments that were kept."""

    labels: list[int]
    score: float
    log_p: float


def _advance(predictor: Predictor, joint: Joint, new: list[Labels], networks: dict) -> dict:
    """The prediction network after each of `new`, whose parents are in `networks`: labels -> W_p g (D,), its state."""
    states = [
        torch.cat(parts, 1) for parts in zip(*(networks[y[:-1]][1] for y in new), strict=True)
    ]
    last = torch.tensor([[y[-1]] for y in new], device=joint.bias.device)
    output, (h, c) = predictor(last, tuple(states))
    states = zip(h.split(1, 1), c.split(1, 1), strict=True)
    return dict(zip(new, zip(joint.predict(output)[:, 0], states, strict=True), strict=True))


def _extend(
    kept: list[Labels], log_p: Tensor, priors: Tensor, longest: int, beam: int | None
) -> dict[Labels, float]:
    """N hypotheses one step on, labels -> log p: each after a blank, and the best `beam` of those after a label.

    log_p (N, V) of each with the blank or a label after it, overwritten; priors (N, 1): what else counts in its score.
    """
    extended = dict(zip(kept, log_p[:, BLANK].tolist(), strict=True))
    log_p[:, BLANK] = -math.inf
    log_p[[len(y) == longest for y in kept]] = -math.inf
    row = {y: n for n, y in enumerate(kept)}
    for y in kept:
        if (
            y and y[:-1] in row
        ):  # its parent with its last label is the same sequence: their alignments add up
            from_parent = row[y[:-1]], y[-1]
            extended[y] = log_add(extended[y], log_p[from_parent].item())
            log_p[from_parent] = -math.inf
    scores = (log_p + priors).flatten()  # without the bonus of the new label, which all of them get
    best = scores.topk(min(beam or len(scores), len(scores))).indices  # more of them could not stay
    for index, value in zip(best.tolist(), log_p.flatten()[best].tolist(), strict=True):
        if value > -math.inf:
            n, label = divmod(index, log_p.shape[1])
            extended[*kept[n], label] = value
    return extended


@torch.inference_mode()
def beam_search(
    predictor: Predictor, joint: Joint, encoded: Tensor, beam: int | None = 16, longest: int | None = None,
    lm: Callable[[list[Labels], bool], list[float]] | None = None, lm_weight: float = 0.0, bonus: float = 0.0,
) -> list[Hypothesis]:  # fmt: skip
    """The best label sequences y of one utterance, encoded (T, D), at most `beam`, best first.

        score(y) = log p(y | x) + lm_weight log p_lm(y) + bonus len(y)

    Hypotheses are compared after equally many steps, blanks and labels counted alike (alignment-length synchronous
    decoding, Saon et al. 2020): after i steps, one of u labels stands at frame i - u. Alignments of the same labels add
    up. Per step the best `beam` are kept; None: all, which is exact among sequences of at most `longest` labels (four
    per frame unless given).

    lm(prefixes, ended) -> log p of each, or of all that begin with it: the longer the prefix, the less, or too much is
    dropped. Asked for what was kept; until then a hypothesis has its parent's. So finished sequences too are compared
    without their last label and end, which only the last `beam` of them get. Not asked if lm_weight is 0.
    """
    T, longest = len(encoded), 4 * len(encoded) if longest is None else longest
    output, state = predictor(torch.full((1, 1), BLANK, device=encoded.device))
    networks = {
        (): (joint.predict(output)[0, 0], state)
    }  # labels -> W_p g (D,), state of the prediction network
    kept, finished = {(): 0.0}, {}  # labels -> log p
    fused: dict[Labels, float] = {(): 0.0}  # labels -> lm_weight log p_lm

    def ask_lm(sequences: list[Labels], ended: bool) -> None:
        log_p = lm(sequences, ended) if lm and lm_weight and sequences else [0.0] * len(sequences)
        fused.update((y, lm_weight * value) for y, value in zip(sequences, log_p, strict=True))

    def score(y: Labels, log_p: float) -> float:
        return log_p + (fused[y] if y in fused else fused[y[:-1]]) + bonus * len(y)

    def best(hypotheses: dict[Labels, float]) -> dict[Labels, float]:
        return dict(sorted(hypotheses.items(), key=lambda item: score(*item), reverse=True)[:beam])

    for i in range(T + longest):
        if new := [
            y for y in kept if y not in networks
        ]:  # all have a parent that was kept one step ago
            networks |= _advance(predictor, joint, new, networks)
            ask_lm(new, False)
        networks = {y: networks[y] for y in kept}
        frames = torch.tensor([i - len(y) for y in kept], device=encoded.device)
        logits = joint(encoded[frames], torch.stack([networks[y][0] for y in kept]))
        log_p = torch.tensor(list(kept.values()), dtype=torch.float64)[:, None]
        log_p = (
            log_p + logits.double().log_softmax(-1).cpu()
        )  # (N, V) with a blank, and with each label
        priors = torch.tensor([score(y, 0.0) for y in kept], dtype=torch.float64)[:, None]
        extended = _extend(list(kept), log_p, priors, longest, beam)
        finished = best(
            finished | {y: log_p for y, log_p in extended.items() if i + 1 - len(y) == T}
        )
        kept = best({y: log_p for y, log_p in extended.items() if i + 1 - len(y) < T})
        # Nothing could still enter `finished`: no sequence gets more than all unfinished ones have together, unless
        # bonuses outweigh what its further labels cost.
        bound = functools.reduce(log_add, (score(*item) for item in kept.items()), -math.inf)
        if not kept or (
            len(finished) == beam and bound < min(score(*item) for item in finished.items())
        ):
            break
    ask_lm(list(finished), True)
    found = [Hypothesis(list(y), score(y, log_p), log_p) for y, log_p in finished.items()]
    return sorted(found, key=lambda hypothesis: hypothesis.score, reverse=True)


def align(predictor: Predictor, joint: Joint, encoded: Tensor, labels: list[int]) -> list[Token]:
    """When each of an utterance's labels is emitted: the expected frame, rounded. encoded (T, D)."""
    if not labels:
        return []
    target = torch.tensor([labels], device=encoded.device)
    predicted = joint.predict(predictor.all_states(target))
    sizes = (torch.tensor([len(x)], device=encoded.device) for x in (encoded, labels))
    _, gamma = transducer_loss(joint, encoded[None], predicted, target, *sizes)
    frames = emission_frames(gamma)[0].round().long().tolist()
    return [Token(label, t, t + 1) for label, t in zip(labels, frames, strict=True)]


def emission_frames(gamma: Tensor) -> Tensor:
    """gamma (B, T, U) -> (B, U): when each label is emitted, in frames: the expectation, which never runs backwards."""
    return (gamma * torch.arange(gamma.shape[1], device=gamma.device)[:, None]).sum(1)
