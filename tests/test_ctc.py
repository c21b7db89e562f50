"""CTC against an enumeration of all paths, on everything small enough to enumerate."""

import itertools
import math

import pytest
import torch

from common import ctc


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label != ctc.BLANK)


def enumerate_paths(log_probs, target) -> float:
    """-log of the summed probability of all paths that collapse to the target, in plain
    Python."""
    T, V = log_probs.shape
    total = 0.0
    for path in itertools.product(range(V), repeat=T):
        if collapse(path) == tuple(target):
            total += math.exp(sum(log_probs[t, label].item() for t, label in enumerate(path)))
    return -math.log(total) if total else math.inf


TARGETS = [[1, 2], [1, 1], [2], [], [1, 2, 1], [2, 2, 2], [1, 1, 2]]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 5e-6)])
def test_loss_is_the_sum_over_all_paths(dtype, tolerance):
    torch.manual_seed(0)
    log_probs = torch.randn(len(TARGETS), 5, 3, dtype=dtype).log_softmax(-1)
    lengths = torch.tensor([5, 4, 1, 3, 5, 5, 3])
    targets = torch.full(
        (len(TARGETS), 3), 99
    )  # whatever stands behind a target's end must not matter
    for i, target in enumerate(TARGETS):
        targets[i, : len(target)] = torch.tensor(target, dtype=torch.long)
    losses = ctc.ctc_loss(log_probs, lengths, targets, torch.tensor([len(t) for t in TARGETS]))
    assert losses.dtype == dtype
    for i, target in enumerate(TARGETS):
        expected = enumerate_paths(log_probs[i, : lengths[i]].double(), target)
        assert losses[i].item() == pytest.approx(expected, rel=tolerance), target


def test_half_precision_is_computed_in_single():
    log_probs = torch.randn(1, 5, 3).log_softmax(-1)
    arguments = torch.tensor([5]), torch.tensor([[1]]), torch.tensor([1])
    half = ctc.ctc_loss(log_probs.bfloat16(), *arguments)
    assert half.dtype == torch.float32
    assert torch.allclose(half, ctc.ctc_loss(log_probs.bfloat16().float(), *arguments))


def test_gradient():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    arguments = torch.tensor([5, 4]), torch.tensor([[1, 1], [2, 0]]), torch.tensor([2, 1])
    assert torch.autograd.gradcheck(lambda x: ctc.ctc_loss(x.log_softmax(-1), *arguments), logits)


def test_required_frames_is_where_paths_begin_to_exist():
    for U in range(4):
        for target in itertools.product([1, 2], repeat=U):
            needed = ctc.required_frames(torch.tensor([[*target, 1, 1]]), torch.tensor([U])).item()
            shortest = next(
                T
                for T in range(8)
                if any(collapse(p) == target for p in itertools.product(range(3), repeat=T))
            )
            assert needed == shortest
            if needed > 1:
                log_probs = torch.zeros(1, needed - 1, 3).log_softmax(-1)
                loss = ctc.ctc_loss(
                    log_probs, torch.tensor([needed - 1]), torch.tensor([target]), torch.tensor([U])
                )
                assert loss.isinf().all()


def test_greedy_collapses_with_times_and_ignores_padding():
    path = torch.tensor([[0, 1, 1, 0, 1, 2, 2, 3, 3]])
    tokens = ctc.greedy(torch.nn.functional.one_hot(path, 4).float(), torch.tensor([7]))[0]
    assert tokens == [(1, 1, 3), (1, 4, 5), (2, 5, 7)]
    assert ctc.greedy(torch.zeros(1, 3, 4), torch.tensor([0])) == [[]]


def test_alignment_is_the_best_of_all_paths():
    torch.manual_seed(0)
    for target in TARGETS:
        log_probs = torch.randn(5, 3).log_softmax(-1)
        paths = [p for p in itertools.product(range(3), repeat=5) if collapse(p) == tuple(target)]
        best = max(
            paths, key=lambda p: sum(log_probs[t, label].item() for t, label in enumerate(p))
        )
        assert ctc.align(log_probs, target) == ctc.collapse(best)


def test_alignment_of_the_impossible():
    with pytest.raises(ValueError, match="need 3 frames"):
        ctc.align(torch.zeros(2, 3), [1, 1])


def test_word_times_for_pieces_and_characters():
    from common.text import Characters, WordPiece

    pieces = WordPiece(["the", "knight", "##s", "##'##", "t", "don"])
    tokens = [
        ctc.Token(label, 2 * i, 2 * i + 1)
        for i, label in enumerate(pieces.encode("the knights don't"))
    ]
    assert ctc.word_times(tokens, pieces.decode) == [
        ("the", 0, 1),
        ("knights", 2, 5),
        ("don't", 6, 11),
    ]
    characters = Characters.build(["a bc"])
    tokens = [
        ctc.Token(label, 2 * i, 2 * i + 1) for i, label in enumerate(characters.encode("a bc"))
    ]
    assert ctc.word_times(tokens, characters.decode) == [("a", 0, 1), ("bc", 4, 7)]


# -------------------------------------------------------------------------------------- beam search

EXACT = {"beam": None, "candidates": None, "blank_skip": None}


class TableLM:
    """A random p(next label or end | prefix) for every prefix, and a record of what was
    asked."""

    def __init__(self, labels: int):
        self.labels, self.table, self.calls = labels, {}, []

    def __call__(self, prefixes):
        self.calls.append(list(prefixes))
        return torch.stack([self.next(tuple(y)) for y in prefixes])

    def next(self, y):
        if y not in self.table:
            generator = torch.Generator().manual_seed(hash(y) % 2**31)
            scores = 2 * torch.randn(self.labels, dtype=torch.float64, generator=generator)
            self.table[y] = scores.log_softmax(-1)
        return self.table[y]

    def sentence(self, y) -> float:
        """log p(y, end)"""
        return sum(self.next(y[:i])[label].item() for i, label in enumerate((*y, 0)))


def random_log_probs(T: int, V: int, seed: int, sharpness: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(T, V, dtype=torch.float64, generator=generator)).log_softmax(-1)


@pytest.mark.parametrize(("T", "V"), [(1, 2), (3, 2), (4, 3), (5, 3), (4, 4), (5, 4)])
@pytest.mark.parametrize(("weight", "bonus"), [(0.0, 0.0), (0.0, 1.3), (0.7, 0.0), (0.4, -0.8)])
def test_without_pruning_the_search_is_exact(T, V, weight, bonus):
    log_probs, lm = random_log_probs(T, V, seed=T + V), TableLM(V)
    expected = {}  # labels -> score, log p_ctc, of all that T frames can carry
    for y in (y for U in range(T + 1) for y in itertools.product(range(1, V), repeat=U)):
        if (exact := -enumerate_paths(log_probs, y)) > -math.inf:
            expected[y] = exact + weight * lm.sentence(y) + bonus * len(y), exact
    for limits in (EXACT, {"beam": 10**6, "candidates": V - 1, "blank_skip": 1.0}):
        found = ctc.prefix_beam_search(log_probs, **limits, fusion=ctc.Fusion(lm, weight, bonus))
        assert {tuple(h.labels) for h in found} == set(expected) and len(found) == len(expected)
        for labels, *scores in found:
            assert scores == pytest.approx(expected[tuple(labels)], abs=1e-9), labels
        assert tuple(found[0].labels) == max(expected, key=lambda y: expected[y][0])
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


def test_the_whole_probability_is_found():
    found = ctc.prefix_beam_search(random_log_probs(7, 4, seed=0), **EXACT)
    assert sum(math.exp(h.log_p) for h in found) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize("candidates", [1, 2, None])
@pytest.mark.parametrize("blank_skip", [0.5, None])
def test_pruning_only_loses_paths(beam, candidates, blank_skip):
    for seed in range(20):
        log_probs, lm = random_log_probs(6, 4, seed, sharpness=2), TableLM(4)
        exact = {
            tuple(h.labels): h
            for h in ctc.prefix_beam_search(log_probs, **EXACT, fusion=ctc.Fusion(lm, 0.5))
        }
        found = ctc.prefix_beam_search(log_probs, beam, candidates, blank_skip, ctc.Fusion(lm, 0.5))
        assert 1 <= len(found) <= beam and len({tuple(h.labels) for h in found}) == len(found)
        for labels, score, log_p in found:
            whole = exact[tuple(labels)]
            assert -math.inf < log_p <= whole.log_p + 1e-12 and score <= whole.score + 1e-12
            assert score - log_p == pytest.approx(
                whole.score - whole.log_p, abs=1e-9
            )  # the language model's part
            assert len(ctc.align(log_probs, labels)) == len(labels)


def test_a_wider_beam_finds_what_greedy_search_cannot():
    """Two paths give [1], and together they beat the best path, which gives nothing."""
    log_probs = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
    assert ctc.greedy(log_probs[None], torch.tensor([2])) == [[]]
    labels, score, log_p = ctc.prefix_beam_search(log_probs)[0]
    assert labels == [1] and score == log_p == pytest.approx(math.log(0.64), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limits", [{}, {"beam": 1, "candidates": 1}, EXACT], ids=str)
def test_of_one_possible_path_the_search_is_greedy(dtype, limits):
    path = torch.tensor(
        [0, 1, 1, 0, 1, 2, 2, 0, 0, 2, 3, 3, 1]
    )  # 1 and 2 twice, parted by blanks that are skipped
    log_probs = torch.nn.functional.one_hot(path, 30).to(dtype).log()
    assert ctc.prefix_beam_search(log_probs, **limits) == [([1, 1, 2, 2, 3, 1], 0.0, 0.0)]


def test_skipping_a_frame_that_is_surely_blank_changes_nothing():
    for seed in range(5):
        log_probs, lm = random_log_probs(6, 3, seed), TableLM(3)
        log_probs[[0, 2, 3]] = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).log()
        whole = ctc.prefix_beam_search(log_probs, **EXACT, fusion=ctc.Fusion(lm, 0.6))
        skipped = ctc.prefix_beam_search(log_probs, None, None, 0.999, ctc.Fusion(lm, 0.6))
        assert [h.labels for h in skipped] == [h.labels for h in whole]
        assert [h[1:] for h in skipped] == [pytest.approx(h[1:], abs=1e-9) for h in whole]


def test_a_skipped_frame_is_a_blank():
    almost = torch.tensor([[0.1, 0.9], [0.95, 0.05], [0.1, 0.9]], dtype=torch.float64)
    found = {tuple(h.labels): h.log_p for h in ctc.prefix_beam_search(almost.log(), blank_skip=0.9)}
    blank = torch.tensor([[0.1, 0.9], [0.95, 0.0], [0.1, 0.9]], dtype=torch.float64)
    expected = {y: -enumerate_paths(blank.log(), y) for y in [(), (1,), (1, 1)]}
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_language_model_is_asked_in_batches_and_never_twice():
    log_probs, lm = random_log_probs(12, 6, seed=3), TableLM(6)
    log_probs[4:6] = torch.tensor([0.9995, *[0.0001] * 5]).log()
    found = ctc.prefix_beam_search(log_probs, beam=4, candidates=3, fusion=ctc.Fusion(lm, 0.5))
    asked = [y for call in lm.calls for y in call]
    assert lm.calls[0] == [()] and len(asked) == len(set(asked))
    assert len(lm.calls) <= 10 + 1 and all(
        1 <= len(call) <= 4 for call in lm.calls
    )  # 10 frames, and the end
    assert {tuple(h.labels) for h in found} <= set(asked)  # their end needs it


def test_without_weight_the_language_model_is_not_asked():
    log_probs, lm = random_log_probs(5, 4, seed=0), TableLM(4)
    assert (
        ctc.prefix_beam_search(log_probs, fusion=ctc.Fusion(lm))
        == ctc.prefix_beam_search(log_probs)
        and not lm.calls
    )


def test_the_language_model_chooses_between_homophones_and_the_bonus_the_length():
    log_probs = torch.tensor([[0.01, 0.5, 0.49]]).log()

    def lm(prefixes):
        return torch.tensor([[0.2, 0.1, 0.7]]).log().expand(len(prefixes), 3)

    for beam in (1, 10):
        assert ctc.prefix_beam_search(log_probs, beam)[0].labels == [1]
        assert ctc.prefix_beam_search(log_probs, beam, fusion=ctc.Fusion(lm, 0.5))[0].labels == [2]
        assert (
            ctc.prefix_beam_search(log_probs, beam, fusion=ctc.Fusion(bonus=-10.0))[0].labels == []
        )


@pytest.mark.parametrize("T", [0, 1, 4])
def test_silence_is_one_empty_hypothesis(T):
    log_probs = torch.tensor([1.0, 0.0, 0.0]).log().repeat(T, 1)
    assert (
        ctc.prefix_beam_search(log_probs, **EXACT)
        == ctc.prefix_beam_search(log_probs)
        == [([], 0.0, 0.0)]
    )
    lm = TableLM(3)
    assert ctc.prefix_beam_search(log_probs, fusion=ctc.Fusion(lm, 0.5)) == [
        ([], 0.5 * lm.sentence(()), 0.0)
    ]
    assert lm.calls == [[()]]
