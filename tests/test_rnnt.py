"""common/rnnt.py against enumeration of all alignments, torchaudio, and itself."""

import gc
import itertools
import math
import sys

import pytest
import torch
import torchaudio
from conftest import REPOSITORY

from common import rnnt, rnnt_beam
from common.ctc import Fusion

sys.path.append(str(REPOSITORY / "benchmarks"))

from transducer import loss_of_logits

V = 5


def alignments(T: int, U: int):
    """All alignments: lists of (t, u, whether a label leaves there), the last of them a
    blank."""
    for labels in itertools.combinations(range(T + U - 1), U):
        t = u = 0
        alignment = []
        for i in range(T + U):
            alignment.append((t, u, i in labels))
            t, u = (t, u + 1) if i in labels else (t + 1, u)
        yield alignment


def by_hand(log_probs: torch.Tensor, target: list[int], blank: int = 0) -> torch.Tensor:
    """-log p of one utterance, log_probs (T, U+1, V), by summing the probabilities of
    all alignments."""
    T, U = log_probs.shape[0], len(target)
    log_p = [
        sum(log_probs[t, u, target[u] if is_label else blank] for t, u, is_label in alignment)
        for alignment in alignments(T, U)
    ]
    return -torch.stack(log_p).logsumexp(0)


def batch(seed: int = 0, dtype=torch.float64):
    """Four utterances: long, short, without a label, of one frame. logits (4, 5, 4, V),
    targets, lengths."""
    torch.manual_seed(seed)
    logits = (3 * torch.randn(4, 5, 4, V)).to(dtype).requires_grad_()
    targets = torch.tensor([[1, 2, 2], [4, 4, 0], [0, 0, 0], [3, 1, 0]])
    return logits, targets, torch.tensor([5, 3, 4, 1]), torch.tensor([3, 2, 0, 2])


def networks(multiply: bool = False, seed: int = 0, size: float = 2.0):
    """Predictor, joint, the encoder's output h (3, 6, 7), targets, lengths,
    target_lengths: small, double, sharp."""
    torch.manual_seed(seed)
    predictor, joint = rnnt.Predictor(V, 3, 4).double(), rnnt.Joint(7, 4, 6, V, multiply).double()
    with torch.no_grad():
        for parameter in [*predictor.parameters(), *joint.parameters()]:
            parameter.normal_().mul_(size / 2)
    h = torch.randn(3, 6, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1, 2, 4], [3, 3, 0], [2, 0, 0]])
    return predictor, joint, h, targets, torch.tensor([6, 4, 5]), torch.tensor([3, 2, 1])


# --------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_against_all_alignments(seed):
    logits, targets, T, U = batch(seed)
    found = loss_of_logits(logits, targets, T, U)
    log_probs = logits.log_softmax(-1)
    expected = [
        by_hand(log_probs[b, : T[b], : U[b] + 1], targets[b, : U[b]].tolist()) for b in range(4)
    ]
    assert torch.allclose(found, torch.stack(expected), rtol=0, atol=1e-9)
    gradient, expected_gradient = (
        torch.autograd.grad(x, logits)[0] for x in (found.sum(), sum(expected))
    )
    assert torch.allclose(gradient, expected_gradient, rtol=0, atol=1e-9)


@pytest.mark.parametrize("normalise", [True, False])
def test_it_is_torchaudios(normalise):
    logits, targets, T, U = batch(dtype=torch.float32)
    if not normalise:
        logits = logits.detach().log_softmax(-1).requires_grad_()
    integers = targets.int(), T.int(), U.int()
    found = loss_of_logits(logits, *integers, normalise)
    gradient = torch.autograd.grad((3 * found).sum(), logits)[0]
    expected = torchaudio.functional.rnnt_loss(
        logits, *integers, blank=0, reduction="none", fused_log_softmax=normalise
    )
    expected_gradient = torch.autograd.grad((3 * expected).sum(), logits)[0]
    assert found.shape == expected.shape and torch.allclose(found, expected, rtol=5e-6)
    assert (
        gradient - expected_gradient
    ).abs().max() <= 2e-5  # torchaudio's own error, its lattice being fp32
    wide = logits.detach().double().requires_grad_()
    wide_loss = loss_of_logits(wide, targets, T, U, normalise)
    exact = torch.autograd.grad((3 * wide_loss).sum(), wide)[0]
    assert (gradient - exact).abs().max() <= 5e-6 * exact.abs().max()


def test_a_product_begins_as_the_encoder_alone():
    torch.manual_seed(0)
    joint, h = rnnt.Joint(7, 4, 6, V, multiply=True), torch.randn(3, 7)
    encoded = joint.encode(h)
    assert torch.allclose(
        joint(encoded, joint.predict(torch.zeros(4))), joint.output(torch.tanh(encoded))
    )


@pytest.mark.parametrize("multiply", [False, True])
def test_every_tile_gives_the_same_and_gradcheck(multiply, monkeypatch):
    predictor, joint, h, targets, T, U = networks(multiply)
    inputs = [h, *predictor.parameters(), *joint.parameters()]

    own = rnnt.tile_size

    def loss(tile, *_):
        monkeypatch.setattr(rnnt, "tile_size", own if tile is None else lambda *_: tile)
        encoded, predicted = joint.encode(h), joint.predict(predictor.all_states(targets))
        return rnnt.transducer_loss(joint, encoded, predicted, targets, T, U)[0]

    encoded, predicted = joint.encode(h), joint.predict(predictor.all_states(targets))
    whole = loss_of_logits(joint(encoded[:, :, None], predicted[:, None]), targets, T, U)
    expected = torch.autograd.grad(whole.sum(), inputs)
    for tile in (None, 1, 2, 3, 4, 5, 6, 7):
        assert torch.allclose(loss(tile), whole, rtol=0, atol=1e-12)
        found = torch.autograd.grad(loss(tile).sum(), inputs)
        assert all(
            torch.allclose(f, e, rtol=0, atol=1e-11) for f, e in zip(found, expected, strict=True)
        )
    assert torch.autograd.gradcheck(lambda *x: loss(2, *x), inputs)


def test_no_tile_is_larger_than_asked(monkeypatch):
    predictor, joint, h, targets, T, U = networks()
    largest, output = [], joint.output.forward
    monkeypatch.setattr(joint.output, "forward", lambda x: largest.append(x.shape[1]) or output(x))
    monkeypatch.setattr(rnnt, "tile_size", lambda *_: 2)
    loss, _ = rnnt.transducer_loss(
        joint, joint.encode(h), joint.predict(predictor.all_states(targets)), targets, T, U
    )
    loss.sum().backward()
    assert largest == [2] * 6  # three tiles, forward and backward


def test_no_tensor_of_a_tile_is_kept(monkeypatch):
    """Small ones, kept between large ones that are freed, once made a process grow by
    400 MB where 20 are in use."""
    predictor, joint, h, targets, T, U = networks()
    alive, output = [], joint.output.forward

    def count(x):
        alive.append(sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects()))
        return output(x)

    encoded, predicted = joint.encode(h), joint.predict(predictor.all_states(targets))
    gc.collect()  # what other tests have left behind
    monkeypatch.setattr(joint.output, "forward", count)
    monkeypatch.setattr(rnnt, "tile_size", lambda *_: 1)
    loss, _ = rnnt.transducer_loss(joint, encoded, predicted, targets, T, U)
    loss.sum().backward()
    assert len(alive) == 12  # six tiles, forward and backward; the first one has no other before it
    assert len(set(alive[1:6])) == len(set(alive[7:])) == 1


def test_gamma_is_the_emission_posterior():
    """Against the share of the alignments' probability; against the derivative; and it
    sums to one over the frames."""
    logits, targets, T, U = batch()
    log_probs = logits.detach().log_softmax(-1).requires_grad_()
    loss = loss_of_logits(log_probs, targets, T, U, normalise=False).sum()
    derivative = torch.autograd.grad(loss, log_probs)[0]
    label = log_probs.gather(-1, targets[:, None, :, None].expand(4, 5, 3, 1))[..., 0]
    gamma = rnnt.lattice(log_probs[..., 0], torch.nn.functional.pad(label, (0, 1)), T, U).gamma[
        ..., :-1
    ]
    assert torch.allclose(gamma.sum(1), (torch.arange(3) < U[:, None]).double(), rtol=0, atol=1e-12)
    for b, u in itertools.product(range(4), range(3)):
        for t in range(5):
            expected = 0.0
            if t < T[b] and u < U[b]:
                expected = -derivative[b, t, u, targets[b, u]].item()
                paths = list(alignments(int(T[b]), int(U[b])))
                steps = [
                    [log_probs[b, i, j, targets[b, j] if k else 0].item() for i, j, k in path]
                    for path in paths
                ]
                p = [math.exp(sum(log_p)) for log_p in steps]
                share = sum(
                    x for x, path in zip(p, paths, strict=True) if (t, u, True) in path
                ) / sum(p)
                assert share == pytest.approx(expected, abs=1e-9)
            assert gamma[b, t, u].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("multiply", [False, True])
def test_an_utterance_alone_and_in_a_batch(multiply, monkeypatch):
    predictor, joint, h, targets, T, U = networks(multiply)
    monkeypatch.setattr(rnnt, "tile_size", lambda *_: 2)

    def loss(h, targets, T, U):
        return rnnt.transducer_loss(
            joint, joint.encode(h), joint.predict(predictor.all_states(targets)), targets, T, U
        )

    together, gamma = loss(h, targets, T, U)
    noisy, other = (
        h + 9 * torch.randn_like(h) * (torch.arange(6) >= T[:, None])[..., None],
        targets.clone(),
    )
    other[1, 2], other[2, 1:] = 4, 3  # what stands in the padding changes nothing
    assert torch.equal(loss(noisy, other, T, U)[0], together)
    for b in range(3):
        alone, gamma_alone = loss(
            h[b : b + 1, : T[b]], targets[b : b + 1, : U[b]], T[b : b + 1], U[b : b + 1]
        )
        assert torch.allclose(alone[0], together[b], rtol=0, atol=1e-12)
        assert torch.allclose(gamma_alone[0], gamma[b, : T[b], : U[b]], rtol=0, atol=1e-12)
        assert not gamma[b, T[b] :].any() and not gamma[b, :, U[b] :].any()


def test_paths_without_probability():
    logits, targets, T, U = batch()
    log_probs = logits.detach().log_softmax(-1)
    padded = targets.masked_fill(torch.arange(3) >= U[:, None], -1)
    log_probs[0, 1, 0, 0] = log_probs[0, 2, 2, 2] = log_probs[1, 0, :2, 0] = -math.inf
    found = loss_of_logits(log_probs, padded, T, U, normalise=False)
    for b in range(4):
        expected = by_hand(log_probs[b, : T[b], : U[b] + 1], targets[b, : U[b]].tolist())
        assert found[b].item() == pytest.approx(expected.item(), abs=1e-9)


def test_nan_is_not_hidden():
    predictor, joint, h, targets, T, U = networks()  # a training skips the update by its norm
    with torch.no_grad():
        h[1, 2, 0] = math.nan
    losses, _ = rnnt.transducer_loss(
        joint, joint.encode(h), joint.predict(predictor.all_states(targets)), targets, T, U
    )
    assert losses.isnan().tolist() == [False, True, False]
    losses.sum().backward()
    assert not joint.output.weight.grad.isfinite().all()


def test_half_precision(monkeypatch):
    """bf16 logits are read as what they are, in fp32; under autocast only the joint
    network runs in bf16."""
    logits, targets, T, U = batch(dtype=torch.bfloat16)
    found = loss_of_logits(logits, targets, T, U)
    wide = logits.detach().double().requires_grad_()
    expected = loss_of_logits(wide, targets, T, U)
    assert found.dtype == torch.float32 and torch.allclose(found.double(), expected, rtol=1e-6)
    gradient, exact = (
        torch.autograd.grad(found.sum(), logits)[0],
        torch.autograd.grad(expected.sum(), wide)[0],
    )
    assert gradient.dtype == torch.bfloat16 and torch.allclose(gradient.double(), exact, atol=4e-3)

    predictor, joint, h, targets, T, U = networks()
    monkeypatch.setattr(rnnt, "tile_size", lambda *_: 2)
    joint, h = joint.float(), h.detach().float().requires_grad_()
    predicted = predictor.float().all_states(targets)
    results = {}
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, _ = rnnt.transducer_loss(
                joint, joint.encode(h), joint.predict(predicted), targets, T, U
            )
        assert loss.dtype == torch.float32
        results[enabled] = (
            loss.detach(),
            torch.autograd.grad(loss.sum(), [h, *joint.parameters()], retain_graph=True),
        )
    assert torch.allclose(results[True][0], results[False][0], rtol=0.02) and not results[True][
        0
    ].equal(results[False][0])
    for low, high in zip(results[True][1], results[False][1], strict=True):
        assert low.dtype == high.dtype and (low - high).abs().max() < 0.05 * high.abs().max()


# ----------------------------------------------------------------------------------------- decoding


def test_the_predictor_step_by_step():
    predictor, _, _, targets, *_ = networks()
    whole, state = predictor.all_states(targets), None
    for u, labels in enumerate([torch.zeros(3, dtype=torch.long), *targets.T]):
        output, state = predictor(labels[:, None], state)
        assert torch.allclose(output[:, 0], whole[:, u], rtol=0, atol=1e-12)


def greedy_by_hand(predictor, joint, encoded, per_frame):
    """Frame by frame, label by label, with the prediction network read anew from the
    beginning every time."""
    labels, times = [], []
    for t, e in enumerate(encoded):
        for _ in range(per_frame):
            g = predictor.all_states(torch.tensor([labels], dtype=torch.long).reshape(1, -1))[0, -1]
            best = joint(e, joint.predict(g)).argmax().item()
            if best == 0:
                break
            labels.append(best)
            times.append(t)
    return labels, times


@pytest.mark.parametrize("seed", range(4))
def test_greedy_for_a_batch_is_greedy_one_by_one(seed):
    predictor, joint, h, _, T, _ = networks(seed=seed, size=3)
    joint.output.bias.data[0] += seed  # from babbling to nearly silent
    encoded = joint.encode(h)
    for per_frame in (1, 3):
        batched = rnnt.greedy(predictor, joint, encoded, T, per_frame)
        for ahead in (1, 2, 20):
            assert rnnt.greedy(predictor, joint, encoded, T, per_frame, ahead) == batched
        for b in range(3):
            assert (
                rnnt.greedy(predictor, joint, encoded[b : b + 1, : T[b]], T[b : b + 1], per_frame)[
                    0
                ]
                == batched[b]
            )
            assert rnnt.greedy_one(predictor, joint, encoded[b, : T[b]], per_frame) == batched[b]
            labels, times = greedy_by_hand(predictor, joint, encoded[b, : T[b]], per_frame)
            assert [x.label for x in batched[b]] == labels and [
                x.start for x in batched[b]
            ] == times
            assert all(x.end == x.start + 1 for x in batched[b])


@pytest.mark.parametrize("multiply", [False, True])
def test_an_unlimited_beam_finds_everything(multiply, monkeypatch):
    """All sequences of at most three labels with their exact probabilities, in order; a
    beam finds some of them."""
    predictor, joint, h, *_ = networks(multiply)
    encoded = joint.encode(h)[0, :3]
    expected = {}
    for y in itertools.chain.from_iterable(
        itertools.product(range(1, V), repeat=n) for n in range(4)
    ):
        target = torch.tensor([y], dtype=torch.long).reshape(1, -1)
        predicted = joint.predict(predictor.all_states(target))
        loss, _ = rnnt.transducer_loss(
            joint, encoded[None], predicted, target, torch.tensor([3]), torch.tensor([len(y)])
        )
        expected[y] = -loss.item()
    found = rnnt_beam.beam_search(predictor, joint, encoded, None, longest=3)
    assert [tuple(x.labels) for x in found] == sorted(expected, key=expected.get, reverse=True)
    assert all(x.log_p == pytest.approx(expected[tuple(x.labels)], abs=1e-9) for x in found)
    for beam in (1, 4):
        some = rnnt_beam.beam_search(predictor, joint, encoded, beam, longest=3)
        assert 1 <= len(some) <= beam and all(
            x.log_p <= expected[tuple(x.labels)] + 1e-9 for x in some
        )

    def lm(
        prefixes, ended
    ):  # every label 2 costs 3, and the end 1; the last label is judged with the next one
        return [-3.0 * (y if ended else y[:-1]).count(2) - ended for y in prefixes]

    for bonus in (0.0, 0.7):
        fused = {
            y: log_p + 0.5 * lm([y], True)[0] + bonus * len(y) for y, log_p in expected.items()
        }
        assert sorted(fused, key=fused.get) != sorted(expected, key=expected.get)
        found = rnnt_beam.beam_search(predictor, joint, encoded, None, 3, Fusion(lm, 0.5, bonus))
        assert [tuple(x.labels) for x in found] == sorted(fused, key=fused.get, reverse=True)
        assert all(x.score == pytest.approx(fused[tuple(x.labels)], abs=1e-9) for x in found)
    plain = rnnt_beam.beam_search(predictor, joint, encoded, 4, 3)
    assert (
        rnnt_beam.beam_search(predictor, joint, encoded, 4, 3, Fusion(lm)) == plain
    )  # of no weight
    for search in ((4, 3), (4, 3, Fusion(lm, 0.5)), (2, 5, Fusion(lm, 0.5))):
        early = rnnt_beam.beam_search(predictor, joint, encoded, *search)
        with monkeypatch.context() as patch:
            patch.setattr(rnnt_beam, "log_sum", lambda _: math.inf)  # it never stops early
            assert rnnt_beam.beam_search(predictor, joint, encoded, *search) == early
    by_lm = rnnt_beam.beam_search(predictor, joint, encoded, 4, 3, Fusion(lm, 1000.0))
    assert all(2 not in y.labels for y in by_lm[:1])


@pytest.mark.parametrize("bonus", [-1.5, 1.5])
def test_the_best_labels_are_chosen_by_their_whole_score(bonus, monkeypatch):
    """Looking at all labels of all hypotheses instead of the most promising ones
    changes nothing."""
    lm = lambda prefixes, ended: [-3.0 * y.count(2) - ended for y in prefixes]  # noqa: E731

    def search(seed):
        predictor, joint, h, *_ = networks(seed=seed)
        encoded = joint.encode(h)[0, :3]
        return rnnt_beam.beam_search(predictor, joint, encoded, 4, 3, Fusion(lm, 0.5, bonus))

    promising = [search(seed) for seed in range(10)]
    monkeypatch.setattr(torch.Tensor, "topk", lambda scores, k: scores.sort(descending=True))
    assert [search(seed) for seed in range(10)] == promising


def test_a_beam_may_find_more_labels_than_frames():
    predictor, joint, h, *_ = networks()
    joint.output.bias.data[0] -= 4.0  # blanks are rare
    encoded = joint.encode(h)[:1, :3]
    assert len(rnnt.greedy(predictor, joint, encoded, torch.tensor([3]))[0]) > 3
    assert len(rnnt_beam.beam_search(predictor, joint, encoded[0], 4)[0].labels) > 3


def test_search_of_a_batch():
    """Greedy, or each utterance's best hypothesis at its expected frames; nothing
    without frames."""
    predictor, joint, h, _, T, _ = networks()
    encoded = joint.encode(h)
    lengths = torch.tensor([6, 4, 0])
    greedy = rnnt.greedy(predictor, joint, encoded, lengths)
    assert rnnt_beam.search(predictor, joint, encoded, lengths) == greedy
    found = rnnt_beam.search(predictor, joint, encoded, lengths, 4, bonus=0.5)
    for b, n in enumerate(lengths[:2]):
        row = encoded[b, :n]
        best = rnnt_beam.beam_search(predictor, joint, row, 4, fusion=Fusion(bonus=0.5))[0]
        assert found[b] == rnnt.align(predictor, joint, row, best.labels)
        assert [token.label for token in found[b]] == best.labels
    assert found[2] == []


def test_labels_are_emitted_in_order():
    predictor, joint, h, targets, T, U = networks()
    _, gamma = rnnt.transducer_loss(
        joint, joint.encode(h), joint.predict(predictor.all_states(targets)), targets, T, U
    )
    frames = rnnt.emission_frames(gamma)
    for b in range(3):
        times = frames[b, : U[b]].tolist()
        assert times == sorted(times) and times[0] >= 0 and times[-1] <= T[b] - 1
    certain = torch.zeros(1, 5, 2)
    certain[0, 1, 0] = certain[0, 4, 1] = 1
    assert rnnt.emission_frames(certain).tolist() == [[1, 4]]


def test_an_impossible_transcript_teaches_nothing():
    logits, targets, T, U = batch()
    log_probs = logits.detach().log_softmax(-1)
    log_probs[1, :, 0, 4] = -math.inf  # its first label is never allowed
    log_probs.requires_grad_()
    loss = loss_of_logits(log_probs, targets, T, U, normalise=False)
    assert loss.isinf().tolist() == [False, True, False, False]
    assert not torch.autograd.grad(loss.sum(), log_probs)[0][1].any()
