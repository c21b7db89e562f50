"""Graded tests of multirep_kd.py."""

import torch


def lattice_of(code, draw, T, U, lengths, target_lengths):
    """Behind an utterance's end, and for the label at u = U, stand large numbers."""
    blank = -draw.normal(len(lengths), T, U + 1).abs()
    label = -draw.normal(len(lengths), T, U + 1).abs()
    for i, (t, u) in enumerate(zip(lengths, target_lengths, strict=True)):
        label[i, :, u:] = 50.0
        label[i, t:] = 50.0
        blank[i, t:] = 50.0
        blank[i, :, u + 1 :] = 50.0
    sizes = torch.tensor(lengths), torch.tensor(target_lengths)
    return code.rnnt.lattice(blank, label, *sizes)


def test_loss(code, draw):
    """-log p(y | x): equal lengths, unequal ones, and a text longer than the audio."""
    short = draw.integer(2, 3)
    equal = lattice_of(code, draw, 4, 3, [4, 4], [3, 3])
    unequal = lattice_of(code, draw, 4, 3, [4, short, 3], [2, 3, 0])
    longer = lattice_of(code, draw, 2, 5, [2, 1], [5, 4])
    return {"equal": equal.loss, "unequal": unequal.loss, "U > T": longer.loss}


def test_gamma(code, draw):
    """The posterior of labels, for unequal lengths."""
    lengths = [5, draw.integer(2, 4)]
    return {"gamma": lattice_of(code, draw, 5, 3, lengths, [3, 2]).gamma}


def test_blanks(code, draw):
    """The posterior of blanks; the last one has the probability 1."""
    lengths = [4, draw.integer(2, 3)]
    return {"blanks": lattice_of(code, draw, 4, 2, lengths, [1, 2]).blanks}


def inputs(draw):
    """gamma (B, T, U) of two utterances, h (B, T, D), g (B, U+1, P)."""
    T = draw.integer(5, 7)
    gamma = draw.normal(2, T, 3).softmax(1)
    return gamma, draw.normal(2, T, 4), draw.normal(2, 4, 5)


def test_c(code, draw):
    """c_u for diffuse times."""
    return {"c": code.multirep_kd.label_features(*inputs(draw))}


def test_c_of_sharp_gamma(code, draw):
    """All labels at one frame, so that c is a frame of h."""
    gamma, h, g = inputs(draw)
    gamma = torch.zeros_like(gamma)
    gamma[:, draw.integer(0, 4)] = 1.0
    return {"c": code.multirep_kd.label_features(gamma, h, g)}


def test_c_gradient(code, draw):
    """The gradient into both networks."""
    gamma, h, g = inputs(draw)
    h.requires_grad_()
    g.requires_grad_()
    c = code.multirep_kd.label_features(gamma, h, g)
    loss = (c * draw.normal(*c.shape)).sum()
    by_h, by_g = torch.autograd.grad(loss, [h, g])
    return {"by h": by_h, "by g": by_g}
