"""Graded tests of llm_prompt_asr.py."""

import torch
from torch import nn


def test_stack(code, draw):
    """T is not divisible by n, and neither n nor D is 1."""
    found = {}
    for T, n in ((7, 3), (8, 4), (draw.integer(5, 6), 4)):
        s, lengths = code.llm_prompt_asr.stack(draw.normal(1, T, 2), torch.tensor([T]), n)
        found[f"s, T = {T}, n = {n}"] = s
        found[f"lengths, T = {T}, n = {n}"] = lengths
    return found


def test_stack_padding(code, draw):
    """Unequal lengths: behind an utterance's end stand large numbers."""
    lengths = torch.tensor([7, draw.integer(3, 5), 1])
    h = draw.normal(3, 7, 2)
    for i, n in enumerate(lengths.tolist()):
        h[i, n:] = 1e4
    s, stacked = code.llm_prompt_asr.stack(h, lengths, 3)
    return {"s": s, "lengths": stacked}


def test_stack_gradient(code, draw):
    """The gradient reaches every real frame."""
    h = draw.normal(2, 7, 3).requires_grad_()
    s, _ = code.llm_prompt_asr.stack(h, torch.tensor([7, draw.integer(3, 5)]), 2)
    return {"gradient": torch.autograd.grad((s * draw.normal(*s.shape)).sum(), h)[0]}


def sequences(code, draw, texts, shown=None):
    """Two utterances, with symbols before and behind the speech."""
    torch.manual_seed(draw.integer(0, 10_000))
    embedding = nn.Embedding(12, 4)
    speech = draw.normal(2, 3, 4).float()
    speech[1, 1:] = 1e4  # behind the end of the second one
    frame = code.prompting.Frame(before=[10, 4], after=[11, 2], end=0)
    lengths = [3, draw.integer(1, 1)]
    found = code.prompting.build_sequences(embedding, speech, lengths, texts, frame, shown)
    return {"inputs": found.inputs, "mask": found.mask, "targets": found.targets}


def test_training(code, draw):
    """Texts of unequal lengths, and an empty one."""
    text = draw.labels(draw.integer(3, 5), 10)
    found = sequences(code, draw, [text, [7]])
    empty = sequences(code, draw, [[], text])
    return found | {f"{name}, one text is empty": value for name, value in empty.items()}


def test_decoding(code, draw):
    """No texts yet: padding stands on the left."""
    return sequences(code, draw, None)


def test_shown(code, draw):
    """What the model reads differs from what it has to write."""
    text = draw.labels(3, 10)
    hidden = [text[0], code.prompting.MASKED, text[2]]
    return sequences(code, draw, [text, [7]], [hidden, [code.prompting.MASKED]])
