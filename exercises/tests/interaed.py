"""Graded tests of interaed_kd.py."""

from types import SimpleNamespace

import torch


def test_soften(code, draw):
    """K numbers become probabilities at two temperatures; -inf becomes 0."""
    logits = 3 * draw.normal(draw.integer(3, 5), 4)
    logits[1, 2:] = -torch.inf
    return {
        "q at tau 2": code.interaed_kd.soften(logits, 2.0),
        "q at tau 0.7": code.interaed_kd.soften(logits, 0.7),
    }


def shared_pieces(code, draw):
    """A BERT of 12 pieces, 5 of them special; its logits depend on row and position."""
    table = draw.normal(20, 12)
    table[:, :5] += 5.0  # special tokens would be the most likely ones

    def logits_at(rows, positions):
        assert len({len(row) for row in rows}) == 1, "rows of several lengths at once"
        found = [table[sum(row) % 20] + i for row, i in zip(rows, positions, strict=True)]
        return torch.stack(found)

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefg"]
    model = SimpleNamespace(device=torch.device("cpu"))
    teacher = SimpleNamespace(pieces=pieces, longest=8, unk=1, logits_at=logits_at, model=model)
    ids = [9, 5, -1, 11, 7, 6]  # BERT's ids of labels 1 ... 6; it does not have label 3
    tokenizer = SimpleNamespace(ids_in=lambda pieces: ids)
    return code.bert.SharedPieces(tokenizer, teacher)


def test_top_k(code, draw):
    """The K shared pieces with the largest logits, as the student's labels."""
    rows = [[2, 4, 9, 3], [2, 5, 4, 3], [2, 4, 4, 3]]
    labels, logits = shared_pieces(code, draw).top_k(rows, [1, 2, 1], draw.integer(2, 3))
    return {"labels": labels, "logits": logits}


def test_top_k_of_lengths(code, draw):
    """Rows of unequal lengths, in another order; a row is cut where BERT ends."""
    rows = [[2, *[5] * draw.integer(1, 4), 4, 3], [2, 4, 3], [2, *[7] * 8, 4, 3], [2, 4, 6, 3]]
    labels, logits = shared_pieces(code, draw).top_k(rows, [1, 1, 9, 2], 3)
    return {"labels": labels, "logits": logits}


def soft_label(code, draw, B, steps):
    """K = 3 of V = 7 pieces; the first one is a single piece, as <eos> is."""
    labels = torch.stack(
        [torch.randperm(7, generator=draw.generator)[:3] for _ in range(B * steps)]
    )
    probs = draw.normal(B, steps, 3).softmax(-1)
    labels[0] = 0
    probs[0, 0] = torch.tensor([1.0, 0.0, 0.0])
    return code.interaed_kd.SoftLabel(labels.view(B, steps, 3), probs)


def test_h_of_soft_labels(code, draw):
    """Soft labels, with and without smoothing."""
    log_probs = draw.log_probs(2, 4, 7)
    q = soft_label(code, draw, 2, 4)
    mask = torch.ones(2, 4, dtype=torch.bool)
    h = code.interaed_kd.smoothed_cross_entropy
    return {"H at e 0": h(log_probs, q, mask, 0.0), "H at e 0.3": h(log_probs, q, mask, 0.3)}


def test_h_of_padding(code, draw):
    """Sentences of unequal lengths: behind them stand large numbers."""
    log_probs = draw.log_probs(3, 5, 7)
    q = soft_label(code, draw, 3, 5)
    mask = torch.arange(5) < torch.tensor([5, draw.integer(1, 3), 4])[:, None]
    log_probs[~mask] = 1e4
    return {"H": code.interaed_kd.smoothed_cross_entropy(log_probs, q, mask, 0.2)}


def test_h_gradient(code, draw):
    """The gradient with respect to the logits."""
    logits = draw.normal(2, 4, 7).requires_grad_()
    q = soft_label(code, draw, 2, 4)
    mask = torch.arange(4) < torch.tensor([4, draw.integer(2, 3)])[:, None]
    h = code.interaed_kd.smoothed_cross_entropy(logits.log_softmax(-1), q, mask, 0.1)
    return {"gradient": torch.autograd.grad(h, logits)[0]}
