"""Scores that can be checked by hand."""

import numpy as np
import pytest

from common.metrics import (
    bootstrap_difference,
    character_errors,
    homophone_errors,
    read_side_by_side,
    score,
    side_by_side,
    word_errors,
)


def test_word_errors():
    errors = word_errors(["a b c d", "x y"], ["a c d e", "X, y!"])
    assert (errors.substitutions, errors.deletions, errors.insertions, errors.words) == (0, 1, 1, 6)
    assert errors.rate == pytest.approx(100 * 2 / 6)
    assert word_errors(["a"], [""]).rate == 100 and word_errors([""], ["b"]) == (0, 0, 1, 0)
    assert word_errors([], []).rate == 0 and word_errors([""], ["b"]).rate == 100


def test_character_errors_ignore_spaces():
    assert character_errors(["ab cd"], ["abcd"]).rate == 0
    assert character_errors(["ab cd"], ["ab xd"]).rate == 25


def test_homophone_errors():
    twins = {"sail": "sale", "sale": "sail"}
    references = ["the sail was red", "the sale was on", "a sail", "a sale", "no twin here"]
    hypotheses = ["the sale was red", "the sale was on", "a snail", "", "no sale here"]
    errors = homophone_errors(references, hypotheses, twins)
    assert (errors.wrong, errors.count, errors.rate) == (1, 2, 50)  # misheard and missing ones do not count
    assert errors.chance == 50  # one "sail" and one "sale" were counted: either guess is right once
    assert homophone_errors(["sail", "sail", "sale"], ["sail"] * 3, twins) == (1, 3, 100 / 3)
    assert homophone_errors(["a"], ["a"], twins) == (0, 0, 0)


def test_what_was_not_found_is_not_scored():
    references = {"a": "the sail", "b": "a sale", "c": "unread"}
    errors, homophones = score(references, {"b": "a sail", "a": "the sail"}, {"sail": "sale", "sale": "sail"})
    assert (errors.words, errors.substitutions) == (4, 1) and (homophones.count, homophones.wrong) == (2, 1)


def test_bootstrap_of_a_difference():
    rng = np.random.default_rng(0)
    words, sessions = np.full((3, 400), 10), [f"s{i // 8}" for i in range(400)]
    base = rng.binomial(10, 0.2, (3, 400))
    fewer = np.maximum(base - 1, 0)
    assert bootstrap_difference((base, words), (base, words), sessions) == (0, 0, 0)
    better = bootstrap_difference((base, words), (fewer, words), sessions)
    assert better.low < better.difference < better.high < 0
    assert better.difference == pytest.approx(100 * (fewer.sum() - base.sum()) / words.sum())
    assert better == bootstrap_difference((base, words), (fewer, words), sessions)
    # the systems may have heard different numbers of homophones: rates, not sums, are compared
    half = bootstrap_difference((base, words), (base, 2 * words), sessions)
    assert half.difference == pytest.approx(-50 * base.sum() / words.sum())


def test_intervals_cover_the_truth_and_know_sessions():
    """95 % intervals hold the true difference of zero about 95 times in 100, even though errors cluster in sessions."""
    rng, covered, repeats = np.random.default_rng(1), 0, 100
    words, session = np.full((1, 200), 10), np.arange(200) // 10
    for _ in range(repeats):
        hardness = rng.normal(0, 0.5, (2, 20))[:, session]  # the two systems fail in different sessions
        errors = rng.poisson(np.exp(0.5 + hardness))
        interval = bootstrap_difference((errors[:1], words), (errors[1:], words), list(session), samples=400)
        covered += interval.low <= 0 <= interval.high
    assert covered >= 86


def test_side_by_side():
    assert side_by_side("the knight rode home", "the night rode out home").splitlines() == [
        "REF: the KNIGHT rode *** home",
        "HYP: the NIGHT  rode OUT home",
    ]


def test_side_by_side_is_read_back():
    pairs = {"a-1": ("the knight rode home", "the night rode out home"), "a-2": ("boys' don't", ""), "b": ("", "x")}
    text = "\n".join(f"{name}\n{side_by_side(*pair)}\n" for name, pair in pairs.items())
    assert read_side_by_side(text) == pairs
    assert read_side_by_side("") == {}
