"""Graded tests of streaming_aux_kd.py."""

import torch


def test_distance(code, draw):
    """Frames of two utterances."""
    h = draw.normal(2, 3, draw.integer(5, 7))
    return {"d": code.streaming_aux_kd.feature_distance(h, draw.normal(*h.shape))}


def test_distance_of_scaled(code, draw):
    """Louder and shifted frames, and frames that are opposite."""
    h = draw.normal(1, 4, 6)
    d = code.streaming_aux_kd.feature_distance
    scale = draw.integer(2, 5)
    return {"of louder frames": d(h, scale * h + 3), "of opposite frames": d(h, -h)}


def test_distance_gradient(code, draw):
    """The gradient with respect to the student's frames."""
    z = draw.normal(2, 3, 6).requires_grad_()
    d = code.streaming_aux_kd.feature_distance(draw.normal(2, 3, 6), z)
    return {"gradient": torch.autograd.grad((d * draw.normal(2, 3)).sum(), z)[0]}


def frames(draw, B, T):
    """Frames that change with time, each in another direction."""
    return draw.normal(B, T, 5) + torch.arange(T)[:, None] * draw.normal(B, 1, 5)


def test_future_of_a_ramp(code, draw):
    """Frames that grow: one, two and three steps ahead."""
    h = frames(draw, 1, draw.integer(8, 10))
    r = frames(draw, *h.shape[:2])
    mask = torch.ones(h.shape[:2], dtype=torch.bool)
    found = {}
    for n in (1, 2, 3):
        found[f"n = {n}"] = code.streaming_aux_kd.future_loss(h, r, mask, n)
    return found


def test_future_of_padding(code, draw):
    """Utterances of unequal lengths, one of them too short for any target."""
    h = frames(draw, 3, 9)
    r = frames(draw, 3, 9)
    mask = torch.arange(9) < torch.tensor([9, draw.integer(4, 6), 1])[:, None]
    return {"loss": code.streaming_aux_kd.future_loss(h, r, mask, 2)}


def test_future_is_short(code, draw):
    """As many steps as frames, or more: there is no target, and the loss is 0."""
    h = frames(draw, 1, 3)
    mask = torch.ones(1, 3, dtype=torch.bool)
    loss = code.streaming_aux_kd.future_loss
    some = loss(h, frames(draw, 1, 3), mask, 1)
    return {
        "n = 1": some,
        "n = T": loss(h, h, mask, 3),
        "n > T": loss(h, h, mask, draw.integer(4, 6)),
    }
