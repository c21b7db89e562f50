"""CTC against an enumeration of all paths, on everything small enough to enumerate."""

import itertools
import math

import pytest
import torch

from common import ctc


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label != ctc.BLANK)


def enumerate_paths(log_probs, target) -> float:
    """-log of the summed probability of all paths that collapse to the target, in plain Python."""
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
    targets = torch.full((len(TARGETS), 3), 99)  # whatever stands behind a target's end must not matter
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
                T for T in range(8) if any(collapse(p) == target for p in itertools.product(range(3), repeat=T))
            )
            assert needed == shortest
            if needed > 1:
                log_probs = torch.zeros(1, needed - 1, 3).log_softmax(-1)
                loss = ctc.ctc_loss(log_probs, torch.tensor([needed - 1]), torch.tensor([target]), torch.tensor([U]))
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
        best = max(paths, key=lambda p: sum(log_probs[t, label].item() for t, label in enumerate(p)))
        assert ctc.align(log_probs, target) == ctc._collapse(list(best))


def test_alignment_of_the_impossible():
    with pytest.raises(ValueError, match="need 3 frames"):
        ctc.align(torch.zeros(2, 3), [1, 1])


def test_word_times_for_pieces_and_characters():
    from common.text import Characters, WordPiece

    pieces = WordPiece(["the", "knight", "##s", "##'##", "t", "don"])
    tokens = [ctc.Token(label, 2 * i, 2 * i + 1) for i, label in enumerate(pieces.encode("the knights don't"))]
    assert ctc.word_times(tokens, pieces.decode) == [("the", 0, 1), ("knights", 2, 5), ("don't", 6, 11)]
    characters = Characters.build(["a bc"])
    tokens = [ctc.Token(label, 2 * i, 2 * i + 1) for i, label in enumerate(characters.encode("a bc"))]
    assert ctc.word_times(tokens, characters.decode) == [("a", 0, 1), ("bc", 4, 7)]
