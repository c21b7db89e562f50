"""interaed_kd.py: its equations in plain Python, and its runs as users run them."""

import json
import math
import operator
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import (
    REPOSITORY,
    copy_corpus,
    first_update,
    log_without_clocks,
    run_script,
    start_run,
    wait_for_log,
    write_manifest,
)  # fmt: skip
from test_ctc import enumerate_paths

import interaed_kd as script
from common import run
from common.corpora import MicroBatch, Utterance
from common.demo import build_model
from common.features import read_audio
from common.flags import UserError
from common.pretrained import load_model, load_vocabulary
from common.text import WordPiece

CPU = run.Place(0, 1, torch.device("cpu"), None)
SMALL = ["--dim", "32", "--heads", "2", "--ff-dim", "64", "--channels", "4", "--average", "2"]
SMALL += ["--update-seconds", "6", "--epochs", "6", "--decoder-ff-dim", "64", "--method", "interaed_kd"]


@pytest.fixture(scope="session")
def options(root) -> list[str]:
    """Options of a tiny run that need no network: add --data and --out."""
    return ["--preset", "smoke", "--root", str(root), "--teacher", str(teacher_folder(root)), *SMALL]


def teacher_folder(root: Path) -> Path:
    return build_model(root / "demo-smoke", "bert-a", small=True)


@pytest.fixture(scope="session")
def finished(options, root, corpus, tmp_path_factory) -> Path:
    """A finished run of a tiny model on tiny data, and the data beside it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "data").mkdir()
    for name, utterances in (("train", corpus.train[:24]), ("dev", corpus.dev[:6]), ("test", corpus.dev[6:12])):
        write_manifest(folder / "data" / f"{name}.jsonl", utterances)
    shutil.copy(root / "demo-smoke" / "LibriSpeech" / "homophones.txt", folder / "data")
    script.main([*options, "--data", str(folder / "data"), "--out", str(folder / "run")])
    return folder


@pytest.fixture(scope="session")
def babbling(finished, tmp_path_factory) -> Path:
    """The finished run with its blank made unlikely: so little training writes blanks only, and words are wanted."""
    folder = tmp_path_factory.mktemp("babbling") / "run"
    shutil.copytree(finished / "run", folder)
    weights = run.load_weights(folder / "model.safetensors")
    weights["ctc_head.bias"][script.ctc.BLANK] -= 4
    run.save_weights(folder / "model.safetensors", weights)
    return folder


# ------------------------------------------------------------------------------------------------------- equations


def read_config(*arguments: str, **changes) -> script.Config:
    return replace(script.parse(script.Config, script.PRESETS, script.__doc__, list(arguments)), **changes)


def test_the_equation_map_names_what_exists():
    section = re.search(r"^Equations.*?\n-+\n(.*?)\n\n", script.__doc__, re.M | re.S)[1]
    rows = re.findall(r" {3,}(\S+) {2,}(test_\w+)$", section, re.M)
    assert len(rows) == 7
    for function, test in rows:
        assert callable(operator.attrgetter(function)(script)) and callable(globals()[test])


@pytest.fixture
def small():
    """A tiny model of three layers without dropout, V = 4, and its configuration."""
    torch.manual_seed(0)
    arguments = ["--preset", "smoke", *SMALL, "--method", "interaed_kd", "--top-k", "2"]
    config = read_config(*arguments, layers=3, taps=(1, 2), frequency_masks=0, time_masks=0, dropout=0.0)
    return config, script.build_models(config, vocabulary=4)


def make_batch(waves: list[torch.Tensor], targets: list[list[int]], soft=None) -> script.Batch:
    """soft: per utterance (labels (U+1, K), probs (U+1, K)); by default the one-hot transcript."""
    pad = torch.nn.utils.rnn.pad_sequence
    soft = soft or [one_hot(target) for target in targets]
    return script.Batch(
        pad(waves, batch_first=True), torch.tensor([len(w) for w in waves]),
        pad([torch.tensor(t) for t in targets], batch_first=True), torch.tensor([len(t) for t in targets]),
        pad([labels for labels, _ in soft], batch_first=True), pad([probs for _, probs in soft], batch_first=True),
        [Utterance(str(i), "", "", 1.0) for i in range(len(waves))], {}, 0, MicroBatch([]),
    )  # fmt: skip


def one_hot(target: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[y, 3] for y in [*target, 0]]), torch.tensor([[1.0, 0.0]] * (len(target) + 1))


def two_utterances(soft=None) -> script.Batch:
    return make_batch([torch.randn(6500), torch.randn(5500)], [[1, 2], [2]], soft)  # 4 and 3 frames


SOFT = [
    (torch.tensor([[1, 3], [3, 2], [0, 1]]), torch.tensor([[0.8, 0.2], [0.6, 0.4], [1.0, 0.0]])),
    (torch.tensor([[2, 1], [0, 1]]), torch.tensor([[0.7, 0.3], [1.0, 0.0]])),
]


def decoder_log_probs(models, batch) -> list[torch.Tensor]:
    states, lengths = models["recogniser"](batch.waves, batch.samples, (1, 2))
    return models["decoders"][0](states, lengths, batch.targets)


def cross_entropy_by_hand(log_probs, labels, probs, lengths, e) -> float:
    """The equation H_l(q), term by term."""
    total, V = 0.0, log_probs.shape[-1]
    for b, U in enumerate(lengths):
        for i in range(U + 1):
            q = [0.0] * V
            for label, p in zip(labels[b][i].tolist(), probs[b][i].tolist(), strict=True):
                q[label] += p
            total -= sum(((1 - e) * q[v] + e / V) * log_probs[b, i, v].item() for v in range(V))
    return total


def test_ctc_l(small):
    """CTC at every layer by enumerating all paths of a short utterance; the rest of the formula left out by lam = 1."""
    config, models = small
    models.eval()
    config, batch = replace(config, lam=1.0), two_utterances()
    states, lengths = models["recogniser"](batch.waves, batch.samples, (1, 2))
    assert lengths.tolist() == [4, 3] and len(states) == 3
    expected = 0.0
    for i, target in enumerate([[1, 2], [2]]):
        paths = [models["recogniser"].log_probs(state)[i, : lengths[i]].double() for state in states]
        first, second, last = (enumerate_paths(path, target) for path in paths)
        expected += (1 - 0.66) * last + 0.66 * (first + second) / 2
    assert script.compute_losses(models, batch, config, None).item() == pytest.approx(expected, rel=1e-5)


def test_h(small):
    _, models = small
    models.eval()
    batch = two_utterances(SOFT)
    log_probs, mask = decoder_log_probs(models, batch)[0], torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    for e in (0.0, 0.1, 0.7):
        found = script.smoothed_cross_entropy(log_probs, batch.soft_labels, batch.soft_probs, mask, e)
        assert found.item() == pytest.approx(cross_entropy_by_hand(log_probs, *zip(*SOFT, strict=True), [2, 1], e))
    hard = torch.tensor([[1, 2, 0], [2, 0, 0]])
    found = script.smoothed_cross_entropy(log_probs, hard[..., None], torch.ones(2, 3, 1), mask, 0.1)
    library = torch.nn.functional.cross_entropy(log_probs[mask], hard[mask], label_smoothing=0.1, reduction="sum")
    assert found.item() == pytest.approx(library.item())


def test_att_kd(small):
    """A teacher who is sure of the transcript teaches what the transcript does: kd_l == att_l."""
    _, models = small
    models.eval()
    for log_probs in decoder_log_probs(models, batch := two_utterances()):
        att, kd = (script.mix_loss(log_probs, batch, a, 0.1) for a in (0.0, 1.0))
        assert kd.item() == pytest.approx(att.item()) and att.item() > 0
    for log_probs in decoder_log_probs(models, batch := two_utterances(SOFT)):
        att, kd = (script.mix_loss(log_probs, batch, a, 0.1) for a in (0.0, 1.0))
        assert abs(kd.item() - att.item()) > 0.01


def test_mix(small):
    _, models = small
    models.eval()
    batch = two_utterances(SOFT)
    hard = zip(*[one_hot([1, 2]), one_hot([2])], strict=True)
    log_probs = decoder_log_probs(models, batch)[1]
    att = cross_entropy_by_hand(log_probs, *hard, [2, 1], 0.1)
    kd = cross_entropy_by_hand(log_probs, *zip(*SOFT, strict=True), [2, 1], 0.1)
    for a in (0.0, 0.1, 0.5, 1.0):
        assert script.mix_loss(log_probs, batch, a, 0.1).item() == pytest.approx((1 - a) * att + a * kd)


def test_options_change_the_row():
    weights = lambda *arguments: script.row(read_config(*arguments))  # noqa: E731
    assert weights("--method", "ctc") == (1, 0, 0, 0)  # the demo preset's lam is for rows with a decoder
    assert weights("--method", "aed_kd", "--lam", "0.3") == (0.3, 0, 0, 0.5)
    assert weights("--method", "interaed_kd", "--preset", "full", "--a", "1", "--u", "0") == (0.3, 0.66, 0, 1)
    assert weights("--method", "interctc", "--w", "0.2", "--lam", "0.5") == (1, 0.2, 0, 0)
    assert weights("--method", "ctc", "--w", "0.2", "--lam", "0.5") == (1, 0, 0, 0)  # the baseline beside another row
    assert script.taps(read_config("--method", "aed")) == () != script.taps(read_config("--method", "interctc"))


def test_the_tokenizer_gives_back_every_transcript(corpus, root):
    vocabulary = load_vocabulary("demo-smoke", "--teacher", str(root))
    tokenizer = WordPiece.prune(vocabulary, (u.text for u in corpus.train), 5000)
    assert all(tokenizer.decode(tokenizer.encode(u.text)) == u.text for u in corpus.train)


def test_loss():
    c, m = [3.0, 5.0, 7.0], [2.0, 4.0, 11.0]
    for lam, w, u in [(1.0, 0.0, 0.0), (0.3, 0.0, 0.0), (0.3, 0.66, 0.66), (0.2, 0.5, 0.9)]:
        expected = lam * ((1 - w) * 7 + w * (3 + 5) / 2) + (1 - lam) * ((1 - u) * 11 + u * (2 + 4) / 2)
        assert script.total_loss(c, m, script.Weights(lam, w, u, 0.5)) == pytest.approx(expected)
    assert script.total_loss([7.0], [0.0], script.METHODS["ctc"]) == 7
    # the plain hybrid of ESPnet: lam CTC + (1 - lam) attention
    assert script.total_loss([7.0], [11.0], script.METHODS["aed"]) == pytest.approx(0.3 * 7 + 0.7 * 11)


def test_the_whole_loss_is_its_parts(small):
    """compute_losses puts the parts together as the formula says, for every row, --kd-where and separate decoders."""
    _, models = small
    config, _ = small
    models.eval()
    batch = two_utterances(SOFT)
    states, lengths = models["recogniser"](batch.waves, batch.samples, (1, 2))
    c = [
        script.ctc.ctc_loss(models["recogniser"].log_probs(s), lengths, batch.targets, batch.target_lengths).sum()
        for s in states
    ]
    att, kd = ([script.mix_loss(lp, batch, a, 0.1) for lp in decoder_log_probs(models, batch)] for a in (0.0, 1.0))
    for method, weights in script.METHODS.items():
        for where in ("both", "final", "inter"):
            lam, w, u, a = weights
            at = [a * (where != "final")] * 2 + [a * (where != "inter")]
            m = [(1 - x) * hard + x * soft for x, hard, soft in zip(at, att, kd, strict=True)]
            expected = lam * ((1 - w) * c[2] + w * (c[0] + c[1]) / 2) + (1 - lam) * (
                (1 - u) * m[2] + u * (m[0] + m[1]) / 2
            )
            some = models if lam < 1 else torch.nn.ModuleDict({"recogniser": models["recogniser"]})
            found = script.compute_losses(
                some, batch, replace(config, method=(method,), kd_where=where, lam=None), None
            )
            assert found.item() == pytest.approx(expected.item(), rel=1e-5), (method, where)
    separate = replace(config, decoder_sharing="separate")
    several = script.build_models(separate, 4).eval()
    assert len(several["decoders"]) == 3
    several["recogniser"].load_state_dict(models["recogniser"].state_dict())
    for decoder in several["decoders"]:
        decoder.load_state_dict(models["decoders"][0].state_dict())
    one, three = (script.compute_losses(x, batch, y, None).item() for x, y in ((models, config), (several, separate)))
    assert three == pytest.approx(one, rel=1e-5)


def test_q():
    """The K largest of the kept pieces, softened; special and dropped pieces never; a row sums to one."""
    kept = torch.tensor([-1, 5, 2, -1, 7])  # label -> the teacher's piece
    logits = torch.tensor([[9.0, 9.0, 1.0, 9.0, 9.0, 3.0, 9.0, -2.0], [9.0, 9.0, 1.0, 9.0, 9.0, 0.0, 9.0, 4.0]])
    labels, probs = script.soften(logits, kept, k=2, tau=3.0)
    assert labels.tolist() == [[1, 2], [4, 2]]
    for row, (high, low) in zip(probs, [(3.0, 1.0), (4.0, 1.0)], strict=True):
        z = math.exp(high / 3) + math.exp(low / 3)
        assert row.tolist() == pytest.approx([math.exp(high / 3) / z, math.exp(low / 3) / z])


def test_a_taps_loss_teaches_the_layers_at_and_below_it(small):
    """The gradient of CTC's and of the decoder's term at tap 1: none above block 1, some in it and below."""
    _, models = small
    batch = two_utterances(SOFT)
    for term in ("ctc", "mix"):
        models.zero_grad()
        states, lengths = models["recogniser"](batch.waves, batch.samples, (1, 2))
        if term == "ctc":
            log_probs = models["recogniser"].log_probs(states[0])
            script.ctc.ctc_loss(log_probs, lengths, batch.targets, batch.target_lengths).sum().backward()
        else:
            script.mix_loss(models["decoders"][0](states[:1], lengths, batch.targets)[0], batch, 0.5, 0.1).backward()
        first, *above = models["recogniser"].encoder.blocks
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in first.parameters())
        assert models["recogniser"].encoder.subsampling.linear.weight.grad.abs().max() > 0
        assert all(p.grad is None for block in above for p in block.parameters())


def test_the_decoder_runs_once_on_what_the_row_reads(small, monkeypatch):
    """Its batch is (taps + 1) B for interaed_kd, and B where no tap has a decoder's loss."""
    config, models = small
    sizes = []
    models["decoders"][0].blocks.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for method, w in (("interaed_kd", None), ("aed_kd", None), ("aed_kd", 0.66)):
        script.compute_losses(models, two_utterances(SOFT), replace(config, method=(method,), w=w), None)
    assert sizes == [6, 2, 2]


def test_the_decoder_sees_neither_the_future_nor_padding(small):
    _, models = small
    decoder = models["decoders"][0].eval()
    state, lengths = torch.randn(2, 5, 32), torch.tensor([5, 3])
    one = decoder([state], lengths, torch.tensor([[1, 2, 3], [2, 1, 0]]))[0]
    state[1, 3:] = 7.0
    other = decoder([state], lengths, torch.tensor([[1, 2, 1], [2, 3, 3]]))[0]
    torch.testing.assert_close(one[0, :3], other[0, :3])
    torch.testing.assert_close(one[1, :2], other[1, :2])
    assert (one[1, 2] - other[1, 2]).abs().max() > 1e-3


def test_alone_is_as_in_a_padded_batch(small, corpus):
    """Loss, hypothesis and length of an utterance do not depend on its neighbours."""
    config, models = small
    models.eval()
    with torch.no_grad():
        models["recogniser"].ctc_head.bias[0] = -1.0  # an untrained model would write blanks only
    waves = [read_audio(u.audio) for u in corpus.train[:4]]
    targets = [[1, 2, 1], [2], [1, 1], [2, 1]]
    soft = [(labels, probs * 0.7 + 0.15) for labels, probs in map(one_hot, targets)]
    together = make_batch(waves, targets, soft)
    paths = script.recognise(models["recogniser"], together.waves, together.samples, CPU)
    assert any(paths)
    alone_sum = 0.0
    for wave, target, labels, path in zip(waves, targets, soft, paths, strict=True):
        alone = make_batch([wave], [target], [labels])
        assert script.recognise(models["recogniser"], alone.waves, alone.samples, CPU) == [path]
        alone_sum += script.compute_losses(models, alone, config, None).item()
    assert script.compute_losses(models, together, config, None).item() == pytest.approx(alone_sum, rel=1e-5)


def test_every_row_exports_the_same_model_from_the_same_start():
    """The recogniser of a row with a decoder has the same parameters, and the same first values, as that of ctc."""
    exported = []
    for method in script.METHODS:
        torch.manual_seed(3)
        models = script.build_models(read_config("--method", method), 50)
        assert ("decoders" in models) == (script.METHODS[method].lam < 1)
        exported.append(models["recogniser"].state_dict())
    assert all(state.keys() == exported[0].keys() for state in exported)
    assert all(torch.equal(state[name], x) for state in exported for name, x in exported[0].items())


# --------------------------------------------------------------------------------------------------------- teacher


@pytest.fixture(scope="session")
def teacher(root):
    """A trained BERT of the smoke world, its vocabulary, a tokenizer with a part of it, and the teacher's piece ids."""
    from transformers import AutoModelForMaskedLM

    folder = str(build_model(root / "demo-smoke", "bert-a", small=True))
    vocabulary = load_vocabulary(folder, "--teacher", str(root))
    tokenizer = WordPiece.prune(vocabulary, ["the baker's flour", "boys' night 'tis x"], 5)
    return (load_model(AutoModelForMaskedLM, folder, "--teacher", str(root)), vocabulary, tokenizer,
            torch.tensor([-1, *tokenizer.ids_in(vocabulary)]))  # fmt: skip


def by_hand(teacher, text: str, k: int = 3, tau: float = 3.0) -> list[dict[int, float]]:
    """{label: q} per token, with one full forward pass of the model per token, the head on every position."""
    model, vocabulary, tokenizer, theirs = teacher
    found, target = [], tokenizer.encode(text)
    ids = [theirs[y].item() if theirs[y] >= 0 else vocabulary.index("[UNK]") for y in target]
    for i, y in enumerate(target):
        masked = [vocabulary.index("[CLS]"), *ids, vocabulary.index("[SEP]")]
        masked[i + 1] = vocabulary.index("[MASK]")
        logits = model(input_ids=torch.tensor([masked])).logits[0, i + 1].tolist()
        pieces = sorted({p for p in theirs.tolist() if p >= 0}, key=lambda p: -logits[p])[:k]
        z = sum(math.exp(logits[p] / tau) for p in pieces)
        labels = [y if theirs[y] == p else theirs.tolist().index(p) for p in pieces]
        found.append({v: math.exp(logits[p] / tau) / z for v, p in zip(labels, pieces, strict=True)})
    return found


def test_z(teacher):
    """Batched, with the head at the mask only, against one full pass per token; special ids are never a label."""
    model, vocabulary, tokenizer, theirs = teacher
    texts = ["the baker's flour", "boys' night", "'tis night the"]
    questions = script.teacher_inputs(read_config(), tokenizer, vocabulary, [Utterance(t, "", t, 1.0) for t in texts])
    with torch.inference_mode():
        answers = script.label_tokens(model, questions, theirs, vocabulary.index("[MASK]"), 3, 3.0)
    for text, answer in zip(texts, answers, strict=True):
        assert answer.probs.sum(1).tolist() == pytest.approx([1.0] * len(answer.probs))
        expected = by_hand(teacher, text)
        assert len(expected) == len(answer.labels)
        for labels, probs, q in zip(answer.labels.tolist(), answer.probs.tolist(), expected, strict=True):
            assert set(labels) == set(q) and 0 not in labels
            assert all(abs(q[v] - p) < 1e-5 for v, p in zip(labels, probs, strict=True))


def test_what_the_teacher_cannot_know_is_a_hard_label(teacher):
    """A letter that its vocabulary lacks, and a token beyond its longest input."""
    model, vocabulary, _, _ = teacher
    tokenizer = WordPiece.prune(vocabulary, ["é the"], 5)
    theirs = torch.tensor([-1, *tokenizer.ids_in(vocabulary)])
    text = "é " + "the " * model.config.max_position_embeddings
    (question,) = script.teacher_inputs(read_config(), tokenizer, vocabulary, [Utterance("", "", text, 1.0)])
    with torch.inference_mode():
        (answer,) = script.label_tokens(model, [question], theirs, vocabulary.index("[MASK]"), 2, 3.0)
    target = tokenizer.encode(text)
    for i in (0, len(target) - 1):
        assert answer.labels[i, 0] == target[i] and answer.probs[i].tolist() == [1.0, 0.0]
    assert answer.probs[1, 1] > 0


def test_context_of_neighbouring_utterances(teacher):
    _, vocabulary, tokenizer, _ = teacher
    utterances = [Utterance(str(i), "", text, 1.0, session=session) for i, (text, session) in enumerate(
        [("the", "a"), ("night", "a"), ("flour the", "a"), ("x", "b")])]  # fmt: skip
    read = lambda *a: script.teacher_inputs(read_config(*a), tokenizer, vocabulary, utterances)  # noqa: E731
    pieces = lambda ids: " ".join(vocabulary[i] for i in ids)  # noqa: E731
    assert [pieces(ids) for ids, *_ in read()][1] == "[CLS] night [SEP]"
    alone, full = read(), read("--teacher-context", "full")
    assert [pieces(ids) for ids, *_ in full[:3]] == [
        "[CLS] the night flour the [SEP]".replace("flour", pieces(alone[2][0][1:-2]))
    ] * 3
    assert [start for _, start, _ in full] == [1, 2, 3, 1] and pieces(full[3][0]) == pieces(alone[3][0])
    short = script.teacher_inputs(
        read_config("--teacher-context", "full"), tokenizer, vocabulary, utterances, longest=4
    )
    assert pieces(short[1][0]) == "[CLS] the night [SEP]" and short[1][1] == 2


@pytest.fixture
def asked(teacher, root, tmp_path, monkeypatch):
    """soft_labels with a cache of its own; returns the function and the list of how many tokens each call asked for."""
    counts, label_tokens = [], script.label_tokens

    def counting(model, questions, *rest):
        counts[-1] += sum(len(y) for *_, y in questions)
        return label_tokens(model, questions, *rest)

    monkeypatch.setattr(script, "label_tokens", counting)
    utterances = [Utterance(str(i), "", text, 1.0) for i, text in enumerate(["the flour", "night", "the flour"])]

    def ask(*arguments, tokenizer=teacher[2], who="bert-a"):
        counts.append(0)
        folder = build_model(root / "demo-smoke", who, small=True)
        config = read_config(
            "--preset",
            "smoke",
            "--teacher",
            str(folder),
            "--root",
            str(tmp_path),
            "--top-k",
            "8",
            "--tau",
            "3",
            *arguments,
        )
        return script.soft_labels(config, tokenizer, utterances, CPU)[0]

    return ask, counts, tmp_path / "soft-labels"


def test_nothing_is_asked_twice_and_nothing_stale_is_read(asked, teacher):
    ask, counts, folder = asked
    once = ask()
    again = ask()
    assert counts[0] == len(teacher[2].encode("the flour night")) and counts[1] == 0  # equal sentences are asked once
    assert all(
        torch.equal(once[n].probs, again[n].probs) and torch.equal(once[n].labels, again[n].labels) for n in once
    )
    fewer = WordPiece(teacher[2].pieces[1:])
    ask("--top-k", "4"), ask("--tau", "1"), ask(tokenizer=fewer), ask(who="bert-b")
    assert all(counts[2:]) and len(list(folder.iterdir())) == 5
    ask("--soft-labels", "uniform"), ask("--teacher-context", "full")  # made of the same answers: no sessions here
    assert counts[-2] == 0


def test_uniform_labels_keep_the_pieces_and_forget_the_rest(asked):
    ask, *_ = asked
    taught, even = ask(), ask("--soft-labels", "uniform")
    for name, label in even.items():
        assert torch.equal(label.labels, taught[name].labels)
        assert torch.allclose(label.probs[:-1], torch.tensor(1 / 8))
        assert label.probs[-1].tolist() == taught[name].probs[-1].tolist() == [1.0] + [0.0] * 7  # <eos> is hard


def test_a_cut_cache_is_completed(asked):
    ask, counts, folder = asked
    once = ask()
    (path,) = folder.glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:50])
    again = ask()
    assert counts[1] == counts[0]
    assert all(torch.equal(once[name].probs, again[name].probs) for name in once)


def test_a_run_killed_while_asking_asks_for_the_rest_only(asked, monkeypatch):
    ask, counts, folder = asked
    monkeypatch.setattr(script, "ASKED_AT_ONCE", 1)
    counting = script.label_tokens

    def killed(*arguments):
        if list(folder.glob("*/*.safetensors")):
            raise KeyboardInterrupt
        return counting(*arguments)

    monkeypatch.setattr(script, "label_tokens", killed)
    with pytest.raises(KeyboardInterrupt):
        ask()
    monkeypatch.setattr(script, "label_tokens", counting)
    found = ask()
    assert counts[0] > 0 and counts[1] > 0
    shutil.rmtree(folder)
    whole = ask()
    assert counts[0] + counts[1] == counts[2]
    assert all(torch.equal(found[name].probs, whole[name].probs) for name in whole)


def test_the_demos_teacher_is_built_when_it_is_first_asked(tmp_path, teacher):
    config = read_config("--preset", "smoke", "--root", str(tmp_path))
    found, report = script.soft_labels(config, teacher[2], [Utterance("a", "", "the flour", 1.0)], CPU)
    assert (tmp_path / "demo-smoke" / "bert-a" / "model.safetensors").exists()
    assert len(found["a"].labels) == len(teacher[2].encode("the flour")) + 1 and report["teacher_seconds"] > 0


def test_a_bert_without_its_head_is_refused(asked, root, tmp_path):
    """The library would fill the head with noise and only warn."""
    from transformers import AutoModel

    folder = build_model(root / "demo-smoke", "bert-a", small=True)
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "headless")
    shutil.copy(folder / "vocab.txt", tmp_path / "headless")
    shutil.copy(folder / "tokenizer_config.json", tmp_path / "headless")
    with pytest.raises(UserError, match="lacks weights .*cls.*saved with its head"):
        asked[0]("--teacher", str(tmp_path / "headless"))


def test_a_cache_that_cannot_be_written_is_one_sentence(asked, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="soft labels cannot be kept in .*--root"):
        asked[0]("--root", str(tmp_path / "file"))


def test_no_bert_is_one_sentence(asked, tmp_path):
    with pytest.raises(UserError, match="--top-k 400 is more than"):
        asked[0]("--top-k", "400")
    with pytest.raises(UserError, match="no model of that kind|is no BERT"):
        asked[0](who="lm")


# ----------------------------------------------------------------------------------------------------- a whole run


def test_a_finished_run(finished):
    folder = finished / "run"
    files = {p.name for p in folder.iterdir()}
    assert files >= {"config.json", "log.jsonl", "last.pt", "model.safetensors", "tokenizer.json", "result.json"}
    assert files >= {"hyp_test.txt", "loss.png", "posteriors.png", "soft_label.png"}
    # the decoder is needed to go on with the training, and absent from what is exported
    exported = {name.split(".")[0] for name in run.load_weights(folder / "model.safetensors")}
    assert exported == {"frontend", "encoder", "ctc_head"}
    trained = torch.load(folder / "last.pt", weights_only=True)["model"]
    assert {name.split(".")[0] for name in trained} == {"recogniser", "decoders"}
    result = json.loads((folder / "result.json").read_text())
    assert 0 < result["teacher_top1"] <= result["teacher_top_k"] <= 1 and result["teacher_seconds"] > 0
    assert result["method"] == "interaed_kd" and 0 < result["wer"]["test"] <= 110 and result["rtf"] > 0
    updates = [entry for entry in run.read_log(folder) if "loss" in entry]
    assert [entry["step"] for entry in updates] == list(range(1, len(updates) + 1)) and len(updates) >= 30
    assert sum(entry["loss"] for entry in updates[-7:]) < 0.9 * sum(entry["loss"] for entry in updates[:7])
    assert (folder / "hyp_test.txt").read_text().count("REF: ") == 6


def test_the_same_seed_gives_the_same_log(finished, options, tmp_path):
    for workers, out in (("0", "again"), ("2", "workers")):
        arguments = ["--data", str(finished / "data"), "--out", str(tmp_path / out), "--workers", workers]
        script.main([*options, *arguments])
        assert log_without_clocks(tmp_path / out) == log_without_clocks(finished / "run")
        assert (tmp_path / out / "model.safetensors").read_bytes() == (
            finished / "run" / "model.safetensors"
        ).read_bytes()


def test_another_seed_gives_another_run(finished, options, tmp_path):
    script.main(
        [*options, "--data", str(finished / "data"), "--out", str(tmp_path / "x"), "--seed", "2", "--max-steps", "2"]
    )
    assert log_without_clocks(tmp_path / "x")[0]["loss"] != log_without_clocks(finished / "run")[0]["loss"]


def test_killed_at_several_moments_and_resumed_it_ends_bit_identical(finished, options, tmp_path):
    """kill -9 before the first checkpoint, between two, and late; then SIGTERM; then to the end."""
    folder = tmp_path / "killed"
    arguments = [*options, "--data", str(finished / "data"), "--out", str(folder), "--save-steps", "1000"]
    for moment, (lines, how) in enumerate([(3, signal.SIGKILL), (17, signal.SIGKILL), (25, signal.SIGTERM)]):
        process = start_run([*arguments, *(["--resume"] if moment else [])], tmp_path)
        wait_for_log(folder, lines, process)
        process.send_signal(how)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == (1 if how == signal.SIGTERM else -signal.SIGKILL), error
        assert (how == signal.SIGTERM) == ("go on with --resume" in error)
        assert not (folder / "model.safetensors").exists()  # it was unfinished
        (folder / ".last.pt.partial").write_bytes(b"half a checkpoint")
    script.main([*arguments, "--resume"])
    assert log_without_clocks(folder) == log_without_clocks(finished / "run")
    assert (folder / "model.safetensors").read_bytes() == (finished / "run" / "model.safetensors").read_bytes()


def test_sigterm_to_the_whole_process_group_spares_the_reading_processes(finished, options, tmp_path):
    """As batch systems stop a job: everyone gets the signal, and the run still writes its checkpoint."""
    folder = tmp_path / "group"
    arguments = [*options, "--data", str(finished / "data"), "--out", str(folder), "--workers", "2"]
    process = start_run(arguments, tmp_path, start_new_session=True)
    wait_for_log(folder, 8, process)
    os.killpg(process.pid, signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "go on with --resume" in error and "Traceback" not in error, error
    assert (folder / "last.pt").exists()


def test_a_start_that_failed_does_not_block_the_folder(finished, options, tmp_path):
    arguments = ["--data", str(finished / "data"), "--out", str(tmp_path / "run"), "--max-steps", "1"]
    with pytest.raises(UserError, match="holds no tokenizer"):
        script.main([*options, *arguments, "--teacher", str(tmp_path)])
    script.main([*options, *arguments])


def test_a_corpus_that_changed_is_not_resumed(finished, options, tmp_path):
    shutil.copytree(finished / "data", tmp_path / "data")
    arguments = [*options, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    script.main([*arguments, "--max-steps", "2"])
    manifest = tmp_path / "data" / "train.jsonl"
    manifest.write_text("\n".join(manifest.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match="trained on 24 utterances, and --data now has 23"):
        script.main([*arguments, "--max-steps", "2", "--resume"])


def test_resuming_a_finished_run_scores_it_again(finished, options, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    result = script.main([*options, "--data", str(finished / "data"), "--out", str(tmp_path / "run"), "--resume"])
    assert result["wer"] == json.loads((finished / "run" / "result.json").read_text())["wer"]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("method", ["ctc", "interaed_kd"])
def test_two_ranks_and_accumulation_are_one_rank(finished, options, tmp_path, method):
    """The same update of about 8 utterances: at once; 4 micro-batches of 2; shared by 2 ranks. Scores counted once."""
    common = [*options, "--data", str(finished / "data"), "--method", method, "--max-steps", "1", "--dropout", "0"]
    common += ["--frequency-masks", "0", "--time-masks", "0", "--update-seconds", "20", "--seed", "5"]
    whole = script.main([*common, "--out", str(tmp_path / "whole")])
    parts = script.main([*common, "--out", str(tmp_path / "parts"), "--batch-seconds", "5"])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(REPOSITORY / "interaed_kd.py"), *common, "--out", str(tmp_path / "ranks")]
    command += ["--root", str(tmp_path)]  # without soft labels: the ranks share the asking
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("RESULT") == 1 and "%|" not in done.stderr  # no progress bars where there is no terminal
    asked = list((tmp_path / "soft-labels").glob("*/*.safetensors"))
    assert len(asked) == (2 if method == "interaed_kd" else 0)
    ranks = json.loads((tmp_path / "ranks" / "result.json").read_text())
    entry, gradients = first_update(tmp_path / "whole")
    assert entry["utterances"] >= 6
    for result, folder in ((parts, "parts"), (ranks, "ranks")):
        other, other_gradients = first_update(tmp_path / folder)
        assert other["utterances"] == entry["utterances"]
        assert other["loss"] == pytest.approx(entry["loss"], rel=1e-5)
        assert other["norm"] == pytest.approx(entry["norm"], rel=1e-4)
        largest = max(g.abs().max() for g in gradients)
        assert all((a - b).abs().max() <= 1e-5 * largest for a, b in zip(gradients, other_gradients, strict=True))
        assert result["wer"] == whole["wer"]
        hypotheses = (tmp_path / folder / "hyp_test.txt").read_text()
        assert hypotheses == (tmp_path / "whole" / "hyp_test.txt").read_text() and hypotheses.count("REF: ") == 6


def test_a_rank_without_utterances_still_steps(finished, options, tmp_path):
    """Two ranks, one utterance per update: one of them has nothing to do, and the result is that of one rank."""
    lines = (finished / "data" / "train.jsonl").read_text().splitlines()
    shutil.copytree(finished / "data", tmp_path / "data")
    (tmp_path / "data" / "train.jsonl").write_text(lines[0] + "\n")
    common = [*options, "--data", str(tmp_path / "data"), "--max-steps", "2", "--dropout", "0"]
    common += ["--frequency-masks", "0", "--time-masks", "0"]
    script.main([*common, "--out", str(tmp_path / "one")])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(REPOSITORY / "interaed_kd.py"), *common, "--out", str(tmp_path / "two")]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    one, two = ([e["loss"] for e in run.read_log(tmp_path / name) if "loss" in e] for name in ("one", "two"))
    assert len(one) == 2 and two == pytest.approx(one, rel=1e-4)


# ------------------------------------------------------------------------------------------------- damaged corpora


def test_a_damaged_corpus_in_librispeech_layout(root, options, tmp_path, capsys):
    """Upper case, apostrophes, words never seen, a cut FLAC, an empty one, one missing, too long a transcript."""
    folder = copy_corpus(root, tmp_path)
    shutil.rmtree(folder / "LibriSpeech" / "train-001")
    shutil.rmtree(folder / "LibriSpeech" / "test-other")
    transcripts = sorted((folder / "LibriSpeech" / "train-000").glob("*/*/*.trans.txt"))
    lines = transcripts[0].read_text().splitlines()
    names = [line.split()[0] for line in lines]
    audio = {name: transcripts[0].parent / f"{name}.flac" for name in names}
    lines[0] = f"{names[0]} 'TWASN'T THE KINGS' ZEPPELIN"
    lines[1] = f"{names[1]} " + "A TRANSCRIPT MUCH LONGER THAN ITS AUDIO " * 12
    transcripts[0].write_text("\n".join(lines) + "\n")
    audio[names[2]].write_bytes(audio[names[2]].read_bytes()[:9000])
    audio[names[3]].write_bytes(b"")
    next(iter(transcripts[1].parent.glob("*.flac"))).unlink()
    arguments = ["--data", "librispeech", "--root", str(folder), "--out", str(tmp_path / "run"), "--epochs", "2"]
    result = script.main([*options, *arguments])
    error = capsys.readouterr().err
    assert "left out 2 of 100" in error and "is missing" in error and "is no readable audio file" in error
    assert error.count(f"{names[2]}.flac cannot be read") == 1  # named once, then remembered
    assert result["bad_files"] == 1 and result["infeasible"] == 2  # the latter at both passes
    assert set(result["wer"]) == {"test-clean"} and set(result["homophone_error"]) == {"test-clean"}
    assert result["skipped_updates"] == 0


def test_too_many_damaged_files_stop_the_run(finished, options, tmp_path):
    lines = (finished / "data" / "train.jsonl").read_text().splitlines()
    shutil.copytree(finished / "data", tmp_path / "data")
    with open(tmp_path / "data" / "train.jsonl", "w") as file:
        for i, line in enumerate(lines):
            entry = json.loads(line)
            if i < 11:
                content = Path(entry["audio_filepath"]).read_bytes()
                entry["audio_filepath"] = str(tmp_path / f"cut{i}.flac")
                Path(entry["audio_filepath"]).write_bytes(content[:9000])
            file.write(json.dumps(entry) + "\n")
    with pytest.raises(UserError, match=r"11 of 24 utterances cannot be read(.|\n)*cut10.flac cannot be read"):
        script.main([*options, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_small_test_sets(finished, options, tmp_path, count):
    shutil.copytree(finished / "data", tmp_path / "data")
    lines = (finished / "data" / "test.jsonl").read_text().splitlines()[:count]
    (tmp_path / "data" / "test.jsonl").write_text("\n".join(lines) + "\n")
    arguments = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--max-steps", "1"]
    result = script.main([*options, *arguments])
    assert (result["rtf"] is None) == (count == 0) and result["not_scored"] == 0
    assert (tmp_path / "run" / "posteriors.png").exists()


def test_unreadable_test_audio_is_counted(finished, options, tmp_path, capsys):
    shutil.copytree(finished / "data", tmp_path / "data")
    entries = [json.loads(line) for line in (finished / "data" / "test.jsonl").read_text().splitlines()]
    (tmp_path / "cut.flac").write_bytes(Path(entries[0]["audio_filepath"]).read_bytes()[:9000])
    entries[0]["audio_filepath"] = str(tmp_path / "cut.flac")
    (tmp_path / "data" / "test.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n")
    result = script.main(["--checkpoint", str(finished / "run"), "--data", str(tmp_path / "data")])
    assert result["not_scored"] == 1 and "not scored: " in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "dev"])
def test_nothing_to_learn_from(finished, options, tmp_path, split):
    shutil.copytree(finished / "data", tmp_path / "data")
    (tmp_path / "data" / f"{split}.jsonl").write_text("")
    with pytest.raises(UserError, match="nothing to learn from or to check it on"):
        script.main([*options, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")])


# ------------------------------------------------------------------------------------------------- several methods


def test_several_methods_one_after_the_other(finished, options, tmp_path, capsys):
    """Each in a folder of its own, one RESULT line each, side by side at the end; --resume finishes the rest."""
    out = tmp_path / "both"
    arguments = [*options, "--data", str(finished / "data"), "--out", str(out), "--max-steps", "2"]
    arguments += ["--method", "ctc,interaed"]
    results = script.main(arguments)
    alone = script.main([*arguments, "--method", "interaed", "--out", str(tmp_path / "alone")])
    assert alone["wer"] == results["interaed"]["wer"]
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("RESULT") for line in lines) == 3
    assert [line.split()[0] for line in lines if re.match(r"(ctc|interaed) +\d", line)] == ["ctc", "interaed"]
    for method in ("ctc", "interaed"):
        assert json.loads((out / method / "result.json").read_text())["method"] == method
    with pytest.raises(UserError, match="already holds a run: add --resume"):
        script.main(arguments)
    shutil.rmtree(out / "interaed")
    again = script.main([*arguments, "--resume"])
    assert again["interaed"]["wer"] == results["interaed"]["wer"] and again["ctc"]["wer"] == results["ctc"]["wer"]
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("both/interaed", "alone")]
    assert weights[0] == weights[1]


def test_a_wrong_value_of_the_second_method_shows_before_the_first_begins(finished, options, tmp_path):
    arguments = [*options, "--data", str(finished / "data"), "--out", str(tmp_path / "x"), "--method", "ctc,interaed"]
    with pytest.raises(UserError, match="--taps are layers"):
        script.main([*arguments, "--taps", "5"])
    assert not (tmp_path / "x").exists()


# ------------------------------------------------------------------------------------------------------ beam search


def test_beam_search_with_a_language_model(babbling, root, tmp_path, capsys):
    """Tuned on dev, both real-time factors in RESULT; the beam without a limit finds what is at least as likely."""
    lm = str(build_model(root / "demo-smoke", "lm", small=True))
    search = ["--checkpoint", str(babbling), "--decode", "beam", "--beam", "3"]
    result = script.main([*search, "--lm", lm, "--lm-weight", "0.1,0.5", "--bonus", "0", "--out", str(tmp_path / "s")])
    assert capsys.readouterr().err.count("dev WER") == 2
    assert result["lm_weight"] in (0.1, 0.5) and result["rtf"] > 0 and result["greedy_rtf"] > 0
    assert (tmp_path / "s" / "hyp_test.txt").exists()
    plain = script.main([*search, "--bonus", "0", "--out", str(tmp_path / "p")])
    assert plain["lm_weight"] == 0 and plain["lm"] is None
    config = script.parse(script.Config, script.PRESETS, script.__doc__, search)
    model, tokenizer, _ = script.load(config, CPU)
    wave = read_audio(script.load_corpus(config.data, config.root).tests["test"][0].audio)
    greedy = script.recognise(model, wave[None], torch.tensor([len(wave)]), CPU)
    with torch.inference_mode():
        log_probs = model.log_probs(model(wave[None], torch.tensor([len(wave)]))[0][0])
    beam = script.recognise(model, wave[None], torch.tensor([len(wave)]), CPU, script.Beam(20, None, 0.0, 0.0))
    costs = [script.ctc.ctc_loss(log_probs, torch.tensor([log_probs.shape[1]]), torch.tensor([[t.label for t in path]]),
                                 torch.tensor([len(path)])).item() for path in (greedy[0], beam[0])]  # fmt: skip
    assert costs[1] <= costs[0] + 1e-4


def test_transcribing_by_beam_with_times(babbling, corpus, capsys):
    search = ["--checkpoint", str(babbling), "--decode", "beam", "--beam", "3", "--bonus", "0"]
    script.main([*search, "--times", "--transcribe", corpus.train[0].audio])
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows and all(float(row[1]) < float(row[2]) for row in rows)
    with pytest.raises(UserError, match="one --lm-weight and one --bonus"):
        script.main([*search, "--bonus", "0,1", "--transcribe", corpus.train[0].audio])


# ---------------------------------------------------------------------------------------- scoring and transcribing


def test_scoring_a_checkpoint_on_other_data(finished, root):
    result = script.main(
        ["--checkpoint", str(finished / "run"), "--root", str(root), "--data", "demo", "--preset", "smoke"]
    )
    assert set(result["wer"]) == {"test-clean", "test-other"}
    assert (finished / "run" / "score-demo" / "hyp_test-clean.txt").exists()
    again = script.main(["--checkpoint", str(finished / "run")])
    assert again["wer"] == json.loads((finished / "run" / "result.json").read_text())["wer"]


def test_transcribing_any_file(babbling, corpus, tmp_path, capsys):
    """8 kHz stereo WAV, OGG, MP3, FLAC and a recording of ten minutes; standard output holds nothing but the result."""
    wave = read_audio(corpus.train[0].audio).numpy()
    paths = [tmp_path / name for name in ("a b.flac", "c.ogg", "d.mp3")]
    for path in paths:
        soundfile.write(path, wave, 16000)
    soundfile.write(tmp_path / "e.wav", np.stack([wave[::2], wave[::2]], axis=1), 8000)
    long = np.concatenate([read_audio(u.audio).numpy() for u in (corpus.train * 4)[:300]])[: 600 * 16000]
    soundfile.write(tmp_path / "long.flac", long, 16000)
    paths += [tmp_path / "e.wav", tmp_path / "long.flac"]
    capsys.readouterr()
    started = time.perf_counter()
    script.main(["--checkpoint", str(babbling), "--transcribe", *map(str, paths)])
    assert time.perf_counter() - started < 60
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(path) for path in paths]
    assert all(len(line.split("\t")) == 2 and line.split("\t")[1] for line in lines)


def test_word_times_and_unreadable_files(babbling, corpus, tmp_path, capsys):
    (tmp_path / "broken.flac").write_bytes(b"x")
    files = [str(tmp_path / "broken.flac"), *(u.audio for u in corpus.train[:8])]
    with pytest.raises(UserError, match="1 of 9 files"):
        script.main(["--checkpoint", str(babbling), "--times", "--transcribe", *files])
    captured = capsys.readouterr()
    assert "broken.flac cannot be read" in captured.err
    rows = [line.split("\t") for line in captured.out.splitlines()]
    assert rows and all(len(row) == 4 and row[3] and 0 <= float(row[1]) < float(row[2]) for row in rows)
    for utterance in corpus.train[:8]:
        times = [(float(row[1]), float(row[2])) for row in rows if row[0] == utterance.audio]
        assert times == sorted(times) and all(end <= utterance.duration + 0.1 for _, end in times)


# ------------------------------------------------------------------------------------------------------ what it says


def test_errors_are_one_sentence(finished, options, tmp_path):
    data, checkpoint = ["--data", str(finished / "data")], tmp_path / "half"
    with pytest.raises(UserError, match="already holds a run: add --resume"):
        script.main([*options, *data, "--out", str(finished / "run")])
    with pytest.raises(UserError, match=r"epochs 6 -> 7.*--resume"):
        script.main([*options, *data, "--out", str(finished / "run"), "--resume", "--epochs", "7"])
    with pytest.raises(UserError, match="holds no run"):
        script.main(["--checkpoint", str(tmp_path / "nothing")])
    shutil.copytree(finished / "run", checkpoint)
    weights = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="damaged"):
        script.main(["--checkpoint", str(checkpoint)])
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match="not finished"):
        script.main(["--checkpoint", str(checkpoint)])
    (checkpoint / "model.safetensors").write_bytes(weights)
    content = json.loads((checkpoint / "config.json").read_text())
    content["config"]["dim"] = 64
    (checkpoint / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"do not fit its config\.json"):
        script.main(["--checkpoint", str(checkpoint)])
    with pytest.raises(UserError, match="--taps are layers from 1 to 1"):
        script.main([*options, *data, "--method", "interctc", "--taps", "9"])
    with pytest.raises(UserError, match="--max-seconds"):
        script.main([*options, *data, "--out", str(tmp_path / "x"), "--max-seconds", "0.1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--epochs 0", "--epochs must be more than 0"),
        ("--max-steps 0", "--max-steps must be at least 1"),
        ("--kernel 8", "--kernel must be odd"),
        ("--heads 3", "--heads must divide"),
        ("--warmup 100", "below 1, for --schedule one-cycle"),
        ("--method interctc --taps 4", "--taps are layers from 1 to 3"),
        ("--lam 1.5", "--lam is a share"),
        ("--a -0.1 --method aed", "--a is a share"),
        ("--smoothing 1", "--smoothing is a share, below 1"),
        ("--top-k 0", "--top-k must be more than 0"),
        ("--lm demo/lm", "--lm goes with --decode beam"),
        ("--times", "--times goes with --transcribe"),
    ],
)
def test_values_that_make_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        script.main(arguments.split())


def test_exit_codes_and_no_traceback(tmp_path):
    cases = [
        (["--data", "nowhere"], "no such folder"),
        (["--data", "librispeech", "--root", tmp_path], "--root names the folder"),
        (["--checkpoint", tmp_path], "holds no run"),
    ]
    for arguments, message in cases:
        code, out, error = run_script(*arguments, cwd=tmp_path)
        assert (code, out) == (1, "") and error.startswith("error: ") and message in error
        assert len(error.strip().splitlines()) == 1, error


def test_a_hub_model_without_network(finished, options, tmp_path):
    arguments = [*options, "--data", finished / "data", "--teacher", "bert-base-uncased", "--out", tmp_path / "x"]
    started = time.perf_counter()
    code, _, error = run_script(*arguments, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path), cwd=tmp_path)
    assert code == 1 and "--teacher bert-base-uncased is not in the local cache" in error and "local folder" in error
    assert "Traceback" not in error and time.perf_counter() - started < 25


def test_summary(capsys):
    parts = script.main(["--data", "librispeech", "--summary"])
    assert parts["total"] == sum(n for name, n in parts.items() if name != "total")
    assert 30e6 < parts["total"] < 36e6
    assert f"{parts['total']:,}" in capsys.readouterr().out
