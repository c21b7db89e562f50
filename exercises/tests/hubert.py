"""Graded tests of hubert_gpt_bridge.py."""

import torch

MODES = ("remove_blank", "average", "average_remove_blank")


def of_path(draw, path, labels=4):
    """Log-probabilities (T, V) whose most probable path is this one."""
    logits = draw.normal(len(path), labels)
    logits[torch.arange(len(path)), path] += 8.0
    return logits.log_softmax(-1)


def test_path(code, draw):
    """a a - a b b - - in all three modes, and with other labels."""
    a, b = 1, draw.integer(2, 3)
    log_probs = of_path(draw, [a, a, 0, a, b, b, 0, 0])
    longer = of_path(draw, [0, 0, b, 0, b, b, a, a, b])
    found = {}
    for mode in MODES:
        found[f"a a - a b b - -, {mode}"] = code.hubert_gpt_bridge.vectors_of(log_probs, mode)
        found[f"- - b - b b a a b, {mode}"] = code.hubert_gpt_bridge.vectors_of(longer, mode)
    return found


def test_all_blank(code, draw):
    """A path of blanks keeps its least blank frame, where blanks are removed."""
    log_probs = of_path(draw, [0] * draw.integer(5, 8))
    return {mode: code.hubert_gpt_bridge.vectors_of(log_probs, mode) for mode in MODES}


def test_random_paths(code, draw):
    """Random paths of two labels and many blanks."""
    found = {}
    for i in range(6):
        path = torch.randint(0, 3, (9,), generator=draw.generator).tolist()
        for mode in MODES:
            vectors = code.hubert_gpt_bridge.vectors_of(of_path(draw, path), mode)
            found[f"{path} {mode} {i}"] = vectors
    return found


def batch(draw):
    """h (3, 8, D), lengths, log-probabilities; large numbers in the padding."""
    lengths = torch.tensor([8, draw.integer(4, 6), 3])
    paths = ([1, 1, 0, 1, 2, 2, 2, 3], [2, 2, 2, 0, 0, 3, 1, 1], [0, 0, 0, 2, 2, 1, 1, 3])
    log_probs = torch.stack([of_path(draw, path) for path in paths])
    h = draw.normal(3, 8, 5)
    for i, n in enumerate(lengths.tolist()):
        h[i, n:] = 1e4
    return h, lengths, log_probs


def test_compress(code, draw):
    """One utterance, in all three modes."""
    h, lengths, log_probs = batch(draw)
    found = {}
    for mode in MODES:
        vectors, sizes = code.hubert_gpt_bridge.compress(h[:1], lengths[:1], log_probs[:1], mode)
        found[f"vectors, {mode}"] = vectors
        found[f"lengths, {mode}"] = list(sizes)
    return found


def test_compress_padding(code, draw):
    """Unequal lengths; one utterance is all blank, and behind its end stand labels."""
    h, lengths, log_probs = batch(draw)
    vectors, sizes = code.hubert_gpt_bridge.compress(h, lengths, log_probs, "average_remove_blank")
    real = torch.arange(vectors.shape[1]) < torch.tensor(sizes)[:, None]
    return {"lengths": list(sizes), "vectors": vectors[real]}


def test_compress_gradient(code, draw):
    """The gradient of the means; none flows into the padding."""
    h, lengths, log_probs = batch(draw)
    h.requires_grad_()
    vectors, sizes = code.hubert_gpt_bridge.compress(h, lengths, log_probs, "average")
    real = torch.arange(vectors.shape[1]) < torch.tensor(sizes)[:, None]
    loss = (vectors[real] * draw.normal(int(real.sum()), 5)).sum()
    return {"gradient": torch.autograd.grad(loss, h)[0]}
