"""Graded tests of week 0."""

import torch


def test_ctc_likelihood(code, draw):
    """The likelihood of a text is in the last two states at the last frame."""
    T = draw.integer(6, 9)
    alpha = code.week0.ctc_alpha(draw.log_probs(T, 5), [2, 1, 3])
    return {"log p(y | x)": alpha[-1, -2:].logsumexp(0)}


def test_ctc_equal_labels(code, draw):
    """Equal labels need a blank between them; where frames are too few, it is -inf."""
    a = draw.integer(1, 3)
    b = draw.integer(4, 5)
    log_probs = draw.log_probs(6, 6)
    long = code.week0.ctc_alpha(log_probs, [a, a, b, b])
    short = code.week0.ctc_alpha(log_probs[:3], [a, a, a])
    return {
        "a a b b": long[-1, -2:].logsumexp(0),
        "a a a in three frames": short[-1, -2:].logsumexp(0),
    }


def test_ctc_states(code, draw):
    """Every state at every frame, also for an empty text."""
    log_probs = draw.log_probs(draw.integer(4, 6), 4)
    return {
        "alpha of 1 2": code.week0.ctc_alpha(log_probs, [1, 2]),
        "alpha of the empty text": code.week0.ctc_alpha(log_probs, []),
    }


def test_transducer_likelihood(code, draw):
    """The likelihood is at the last node, with one last blank."""
    T = draw.integer(3, 4)
    blank = -draw.normal(T, 6).abs()
    label = -draw.normal(T, 6).abs()
    alpha = code.week0.transducer_alpha(blank, label)
    return {"log p(y | x), U > T": alpha[-1, -1] + blank[-1, -1]}


def test_transducer_nodes(code, draw):
    """Every node of the lattice; the last column of the labels is never used."""
    T = draw.integer(5, 7)
    blank = -draw.normal(T, 4).abs()
    label = -draw.normal(T, 4).abs()
    label[:, -1] = 1e4
    return {"alpha": code.week0.transducer_alpha(blank, label)}


def test_wer_of_a_set(code, draw):
    """Long and short sentences: errors and words are summed over the set."""
    n = draw.integer(4, 7)
    references = ["the knight rode home", " ".join(["so"] * n)]
    hypotheses = ["the night rode", " ".join(["so"] * n)]
    return {"rate": code.week0.word_error_rate(references, hypotheses)}


def test_wer_of_edits(code, draw):
    """Sentences of random words, where several alignments compete."""
    words = ["a", "b", "c", "d"]
    pairs = []
    for _ in range(6):
        reference = [words[i - 1] for i in draw.labels(draw.integer(3, 7), 5)]
        hypothesis = [words[i - 1] for i in draw.labels(draw.integer(2, 8), 5)]
        pairs.append((" ".join(reference), " ".join(hypothesis)))
    rates = []
    for reference, hypothesis in pairs:
        rates.append(code.week0.word_error_rate([reference], [hypothesis]))
    return {"rates": torch.tensor(rates)}


def test_wer_above_100(code, draw):
    """An empty hypothesis has only deletions; a long one may have more than 100 %."""
    n = draw.integer(3, 6)
    return {
        "of the empty hypothesis": code.week0.word_error_rate(["one two"], [""]),
        "of a long one": code.week0.word_error_rate(["one"], [" ".join(["two"] * n)]),
    }
