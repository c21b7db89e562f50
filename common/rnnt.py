"""The transducer (Graves, arXiv 1211.3711): networks, loss, greedy decoding, times.

h_t is the encoder's output at frame t, and g_u the prediction network's output after u
labels. From each pair (t, u), called a node, the joint network computes p(. | t, u). An
alignment is a walk through the lattice of nodes, from (0, 0) to the end: a blank (label
0) goes on to the next frame, a label stays at its frame. The probability of a
transcript is the sum over all its alignments. One of them, with U = 3 and T = 5:

    u
    3   .   .   .   .   o-->  the end: one last blank at (T-1, U)
                        |
    2   .   .   o---o---o     -->  blank at (t, u): log p(blank | t, u)   = blank[t, u]
                |              |   label at (t, u): log p(y_{u+1} | t, u) = label[t, u]
    1   o---o---o   .   .
        |
    0   o   .   .   .   .
        0   1   2   3   4   t

From (0, 0) to (t, u), and from (t, u) to the end:

    e^alpha(t,u) = e^(alpha(t-1, u) + blank[t-1, u]) + e^(alpha(t, u-1) + label[t, u-1])
    e^beta(t,u)  = e^(blank[t, u] + beta(t+1, u)) + e^(label[t, u] + beta(t, u+1))

    loss         = -log p(y | x) = -beta(0, 0)

The emission posterior: the probability that label u+1 is emitted at frame t.

    gamma(t, u) = e^(alpha(t, u) + label[t, u] + beta(t, u+1) - beta(0, 0))

gamma is minus the derivative of the loss with respect to label[t, u], and its sum over
t is 1 for every u < U. Together with the same posterior of blanks it gives the gradient
of the loss with respect to all logits, so the recursion itself is never differentiated.

The tensor of all logits (B, T, U+1, V) makes transducers heavy. `transducer_loss` never
holds it: it computes the logits for a few frames at a time, keeps only blank[t, u] and
label[t, u], and computes the logits again for the gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from common.conformer import length_mask
from common.ctc import BLANK, Token

# ------------------------------------------------------------------------------------ networks


class Predictor(nn.Module):
    """The prediction network: an embedding and an LSTM over the labels so far.

    The first label of every sequence is the blank, which stands for the beginning.
    """

    def __init__(self, vocabulary: int, embedding_dim: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding_dim)
        self.lstm = nn.LSTM(embedding_dim, dim, batch_first=True)

    def forward(
        self, labels: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """labels (B, N) -> outputs (B, N, D) after each one, and the LSTM's state."""
        # In fp32: under bf16 autocast cuDNN's LSTM would run in fp16.
        with torch.autocast(labels.device.type, enabled=False):
            return self.lstm(self.embedding(labels), state)

    def all_states(self, targets: Tensor) -> Tensor:
        """targets (B, U) -> g_0 … g_U (B, U+1, D)."""
        return self(F.pad(targets, (1, 0), value=BLANK))[0]


class Joint(nn.Module):
    """The joint network: Linear(tanh(W_e h_t + W_p g_u + b)).

    That is Graves' sum. multiply: the product of Saon et al. 2021, arXiv 2103.11325,
    Linear(tanh(W_e h_t * (W_p g_u + b_p) + b)). Its b_p is our choice and begins as 1:
    at the start W_p g_u is almost 0, so that a product would hide the encoder, and
    models learned to spell without using the audio.

    `encode` and `predict` are applied first, once to every h_t and once to every g_u.
    Only the rest is computed for every pair (t, u).
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
        """Outputs of encode and predict (…, D), broadcast -> logits (…, V)."""
        combined = encoded * predicted if self.multiply else encoded + predicted
        return self.output(torch.tanh(combined + self.bias.to(combined.dtype)))


# ---------------------------------------------------------------------------------------- loss


class Lattice(NamedTuple):
    loss: Tensor  # (B,) -log p(y | x)
    blanks: Tensor  # (B, T, U+1) p(an alignment has a blank at (t, u) | x, y)
    gamma: Tensor  # (B, T, U+1) p(an alignment has a label at (t, u) | x, y); 0 at u = U


@torch.no_grad()
def lattice(blank: Tensor, label: Tensor, lengths: Tensor, target_lengths: Tensor) -> Lattice:
    """Sums over all alignments, in float64.

    blank, label (B, T, U+1) log-probabilities; lengths, target_lengths (B,).

    With C(t, u) = sum over s < t of blank[s, u], a whole row u of the lattice follows
    from the row below:

        alpha(t, u) = C(t, u) + log sum over s <= t of
                                e^(alpha(s, u-1) + label[s, u-1] - C(s, u))

    and beta in the same way from the other end. So there are U steps over u, each a
    cumulative sum over t, and no loop over t. Blanks with a probability below e^-10000
    get this probability, so that differences of C are finite.
    """
    B, T, columns = blank.shape
    U = columns - 1
    u = torch.arange(U + 1, device=blank.device)
    real = length_mask(lengths, T)[:, :, None] & (u <= target_lengths[:, None])[:, None]
    no_label = ~real | (u == target_lengths[:, None])[:, None]  # (B, T, U+1)
    # (U+1, B, T): the frames of a row lie side by side in memory.
    blank = blank.double().masked_fill(~real, 0.0).clamp(min=-1e4).permute(2, 0, 1)
    label = label.double().masked_fill(no_label, -math.inf).permute(2, 0, 1)
    C = F.pad(blank.cumsum(2), (1, 0))  # (U+1, B, T+1)

    alpha = torch.empty(U + 1, B, T, dtype=torch.float64, device=blank.device)
    alpha[0] = C[0, :, :T]
    for i in range(1, U + 1):
        alpha[i] = C[i, :, :T] + (alpha[i - 1] + label[i - 1] - C[i, :, :T]).logcumsumexp(1)

    # Until the loop comes to row u, beta[u] holds what enters the row: at first the end of
    # each utterance, at frame T of its row U, after the last blank.
    beta = torch.full_like(C, -math.inf)  # (U+1, B, T+1)
    end = (target_lengths, torch.arange(B, device=blank.device), lengths)
    beta[end] = C[end]
    for i in range(U, -1, -1):
        if i < U:
            entered = C[i, :, :T] + label[i] + beta[i + 1, :, :T]
            beta[i, :, :T] = torch.logaddexp(beta[i, :, :T], entered)
        beta[i] = beta[i].flip(1).logcumsumexp(1).flip(1) - C[i]

    log_p = beta[0, :, 0]  # (B,)
    # Without any alignment, all posteriors are to be 0.
    total = log_p.masked_fill(log_p == -math.inf, math.inf)[:, None]  # (B, 1)
    above = F.pad(beta[1:, :, :T], (0, 0, 0, 0, 0, 1), value=-math.inf)  # beta(t, u+1)
    gamma = (alpha + label + above - total).exp()
    blanks = (alpha + blank + beta[:, :, 1:] - total).exp()
    blanks = blanks.masked_fill(~real.permute(2, 0, 1), 0.0)
    return Lattice(-log_p, without_subnormals(blanks), without_subnormals(gamma))


def without_subnormals(x: Tensor) -> Tensor:
    """(U+1, B, T) -> (B, T, U+1), with 0 for numbers below 1e-20.

    Far from the likely alignments all posteriors are tiny, and subnormal numbers make
    the matrix products of a CPU ten times slower.
    """
    return F.threshold(x.permute(1, 2, 0), 1e-20, 0.0)


def next_labels(targets: Tensor, T: int) -> Tensor:
    """targets (B, U) -> (B, T, U+1, 1): y_{u+1} at every node, the blank at u = U."""
    return F.pad(targets, (0, 1), value=BLANK)[:, None, :, None].expand(-1, T, -1, -1)


def pick(log_probs: Tensor, targets: Tensor) -> Tensor:
    """log_probs (B, T, U+1, V), targets (B, U) -> blank and label, (2, B, T, U+1)."""
    label = log_probs.gather(-1, next_labels(targets, log_probs.shape[1]))[..., 0]
    return torch.stack([log_probs[..., BLANK], label])


def derivative(probs: Tensor, targets: Tensor, blanks: Tensor, gamma: Tensor) -> Tensor:
    """The gradient of the loss with respect to the logits, (B, T, U+1, V):

        (blanks + gamma) p(v) - blanks [v = blank] - gamma [v = y_{u+1}]

    It overwrites probs p(v). targets (B, U), blanks and gamma (B, T, U+1).
    """
    blanks = blanks.to(probs.dtype)
    gamma = gamma.to(probs.dtype)
    result = probs.mul_((blanks + gamma)[..., None])
    result[..., BLANK] -= blanks
    return result.scatter_add_(-1, next_labels(targets, probs.shape[1]), -gamma[..., None])


def transducer_loss(
    joint: Joint,
    encoded: Tensor,
    predicted: Tensor,
    targets: Tensor,
    lengths: Tensor,
    target_lengths: Tensor,
) -> tuple[Tensor, Tensor]:
    """-log p(y | x) of each utterance (B,), and gamma (B, T, U), which has no gradient.

    encoded (B, T, D) of joint.encode, predicted (B, U+1, D) of joint.predict; targets
    (B, U), padded with any label; lengths, target_lengths (B,). Under autocast the
    joint network runs in lower precision, but the softmax is fp32 and the lattice
    float64. Where a logit is NaN, so are the loss and its gradient.
    """
    weights = [w for w in (joint.bias, *joint.output.parameters()) if w.requires_grad]
    sizes = targets, lengths, target_lengths
    return _Loss.apply(joint, sizes, encoded[:, :, None], predicted[:, None], *weights)


def tile_size(joint: Joint, encoded: Tensor, predicted: Tensor) -> int:
    """How many frames to compute at once: few for a CPU's caches, many for a GPU."""
    numbers_of_a_node = joint.output.out_features + 3 * joint.output.in_features
    numbers_of_a_frame = len(encoded) * predicted.shape[2] * numbers_of_a_node
    limit = 2**21 if encoded.device.type == "cpu" else 2**25
    return max(1, limit // max(1, numbers_of_a_frame))


class _Loss(torch.autograd.Function):
    """The loss of joint(encoded, predicted), in tiles of a few frames.

    The logits of a tile are computed in forward, and again in backward. encoded
    (B, T, 1, D), predicted (B, 1, U+1, D); weights: the parameters of joint, which are
    arguments so that autograd gives them their gradients.
    """

    @staticmethod
    def forward(ctx, joint, sizes, encoded, predicted, *weights):
        targets, lengths, target_lengths = sizes
        device = encoded.device.type
        tile = tile_size(joint, encoded, predicted)
        B, T, _, _ = encoded.shape
        dtype = torch.promote_types(encoded.dtype, torch.float32)
        # Allocated once: if every tile left a small tensor behind, these would lie between the
        # large ones that are freed, and the process would grow as if it held all logits.
        picked = encoded.new_empty(2, B, T, predicted.shape[2], dtype=dtype)
        for t in range(0, T, tile):
            log_probs = joint(encoded[:, t : t + tile], predicted).log_softmax(-1, dtype)
            picked[:, :, t : t + tile] = pick(log_probs, targets)
        loss, blanks, gamma = lattice(*picked, lengths, target_lengths)

        ctx.save_for_backward(encoded, predicted, targets, blanks, gamma)
        ctx.joint, ctx.weights = joint, weights
        ctx.tile, ctx.dtype = tile, dtype
        ctx.autocast = dict(  # backward computes the logits in the same precision
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
        encoded, predicted, targets, blanks, gamma = ctx.saved_tensors
        scale = scale.double()[:, None, None]  # (B, 1, 1) gradient of each utterance's loss
        blanks, gamma = scale * blanks, scale * gamma
        inputs = [predicted.detach().requires_grad_(), *ctx.weights]
        sums = []  # their gradients, summed over the tiles in fp32 at least
        for x in inputs:
            sums.append(torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)))
        encoded_gradient = torch.empty_like(encoded)
        for t in range(0, encoded.shape[1], ctx.tile):
            frames = slice(t, t + ctx.tile)
            part = encoded[:, frames].detach().requires_grad_()
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                logits = ctx.joint(part, inputs[0])  # (B, tile, U+1, V), the second time
            probs = logits.softmax(-1, ctx.dtype)
            by_logits = derivative(probs, targets, blanks[:, frames], gamma[:, frames])
            gradients = torch.autograd.grad(logits, [part, *inputs], by_logits.to(logits.dtype))
            encoded_gradient[:, frames] = gradients[0]
            for total, gradient in zip(sums, gradients[1:], strict=True):
                total += gradient
        predicted_gradient, *of_weights = (s.to(x.dtype) for s, x in zip(sums, inputs, strict=True))
        return None, None, encoded_gradient, predicted_gradient, *of_weights  # as forward's inputs


# ------------------------------------------------------------------------------------ decoding


@torch.inference_mode()
def greedy_one(
    predictor: Predictor, joint: Joint, encoded: Tensor, per_frame: int = 10
) -> list[Token]:
    """Greedy decoding of one utterance, encoded (T, D): `greedy` does the same, faster.

    The most probable label is emitted again and again, until it is the blank, or after
    `per_frame` labels; then the next frame follows.
    """
    tokens = []
    output, state = predictor(torch.full((1, 1), BLANK, device=encoded.device))
    for t in range(len(encoded)):
        for _ in range(per_frame):
            label = joint(encoded[t], joint.predict(output)[0, 0]).argmax().item()
            if label == BLANK:
                break
            tokens.append(Token(label, t, t + 1))
            output, state = predictor(torch.full((1, 1), label, device=encoded.device), state)
    return tokens


@torch.inference_mode()
def greedy(
    predictor: Predictor,
    joint: Joint,
    encoded: Tensor,
    lengths: Tensor,
    per_frame: int = 10,
    ahead: int = 8,
) -> list[list[Token]]:
    """`greedy_one` for a batch: encoded (B, T, D) of joint.encode, lengths (B,).

    "Label looping", Bataev et al. 2024, arXiv 2406.06220: one step finds the next label
    of every utterance, wherever it is within the next `ahead` frames. The prediction
    network does not change until then, so all these frames can be computed at once. A
    batch takes about max over utterances of (U + T / ahead) steps.
    """
    B, T = encoded.shape[:2]
    row = torch.arange(B, device=encoded.device)[:, None]  # (B, 1)
    window = torch.arange(ahead, device=encoded.device)
    tokens: list[list[Token]] = [[] for _ in range(B)]
    t = torch.zeros_like(lengths)  # (B,) the frame of each utterance
    count = torch.zeros_like(lengths)  # (B,) number of labels at this frame so far
    output, state = predictor(torch.full_like(row, BLANK))
    predicted = joint.predict(output)  # (B, 1, D)
    while (t < lengths).any():
        frames = t[:, None] + window  # (B, ahead)
        best = joint(encoded[row, frames.clamp(max=T - 1)], predicted).argmax(-1)  # (B, ahead)
        best[:, 0].masked_fill_(count >= per_frame, BLANK)
        is_label = (best != BLANK) & (frames < lengths[:, None])
        found = is_label.any(1)  # (B,)
        first = is_label.int().argmax(1)  # (B,) where in the window
        label = torch.where(found, best[row[:, 0], first], BLANK)
        skipped = torch.where(found, first, ahead)  # blanks
        count = count.masked_fill(skipped > 0, 0) + found
        t = t + skipped
        for hypothesis, emitted, frame in zip(tokens, label.tolist(), t.tolist(), strict=True):
            if emitted != BLANK:
                hypothesis.append(Token(emitted, frame, frame + 1))
        # The prediction network moves on where there is a new label.
        output, (h, c) = predictor(label[:, None], state)
        state = (torch.where(found[:, None], h, state[0]), torch.where(found[:, None], c, state[1]))
        predicted = torch.where(found[:, None, None], joint.predict(output), predicted)
    return tokens


# --------------------------------------------------------------------------------------- times


def align(predictor: Predictor, joint: Joint, encoded: Tensor, labels: list[int]) -> list[Token]:
    """When each of an utterance's labels is emitted: the expected frame, rounded.

    encoded (T, D) of joint.encode.
    """
    if not labels:
        return []
    device = encoded.device
    target = torch.tensor([labels], device=device)
    predicted = joint.predict(predictor.all_states(target))
    lengths = torch.tensor([len(encoded)], device=device)
    target_lengths = torch.tensor([len(labels)], device=device)
    _, gamma = transducer_loss(joint, encoded[None], predicted, target, lengths, target_lengths)
    frames = emission_frames(gamma)[0].round().long().tolist()
    return [Token(label, t, t + 1) for label, t in zip(labels, frames, strict=True)]


def emission_frames(gamma: Tensor) -> Tensor:
    """gamma (B, T, U) -> (B, U): the expected frame of each label, in rising order."""
    return (gamma * torch.arange(gamma.shape[1], device=gamma.device)[:, None]).sum(1)
