"""multirep_kd.py: its equations in plain Python, what its teachers read, and its runs as users run them."""

import inspect
import itertools
import json
import math
import operator
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, first_update, log_without_clocks, start_run, wait_for_log, write_manifest
from test_rnnt import alignments

import interaed_kd
import multirep_kd as script
from common import run
from common.corpora import MicroBatch, Utterance
from common.demo import build_model
from common.flags import UserError

CPU = run.Place(0, 1, torch.device("cpu"), None)
SMALL = ["--dim", "32", "--heads", "2", "--ff-dim", "64", "--channels", "4", "--average", "2", "--head-dim", "16"]
SMALL += ["--predictor-dim=16", "--joint-dim=16", "--update-seconds=6", "--epochs=5", "--method=multirep_kd"]


def teacher_folder(root: Path) -> Path:
    return build_model(root / "demo-smoke", "bert-a", small=True)


@pytest.fixture(scope="session")
def options(root) -> list[str]:
    """Options of a tiny run that need no network: add --data and --out."""
    return ["--preset", "smoke", "--root", str(root), "--teachers", str(teacher_folder(root)), *SMALL]


@pytest.fixture(scope="session")
def finished(options, root, corpus, tmp_path_factory) -> Path:
    """A finished run of a tiny model on tiny data with everything random switched on, and the data beside it."""
    folder = tmp_path_factory.mktemp("finished-rnnt")
    (folder / "data").mkdir()
    for name, utterances in (("train", corpus.train[:24]), ("dev", corpus.dev[:6]), ("test", corpus.dev[6:12])):
        write_manifest(folder / "data" / f"{name}.jsonl", utterances)
    shutil.copy(root / "demo-smoke" / "LibriSpeech" / "homophones.txt", folder / "data")
    script.main([*options, *RANDOM, "--data", str(folder / "data"), "--out", str(folder / "run")])
    return folder


RANDOM = ["--context", "20", "--teacher-layers", "random", "--n-layers", "1", "--noise", "0.5", "--dropout", "0.1"]


def read_config(*arguments: str, **changes) -> script.Config:
    return replace(script.parse(script.Config, script.PRESETS, script.__doc__, list(arguments)), **changes)


# ------------------------------------------------------------------------------------------------------- equations


def test_the_equation_map_names_what_exists():
    section = re.search(r"^Equations.*?\n-+\n(.*?)\n\n", script.__doc__, re.M | re.S)[1]
    rows = re.findall(r" {3,}(\S+) {2,}(test_\w+)$", section, re.M)
    assert len(rows) == 9
    for function, test in rows:
        assert callable(operator.attrgetter(function)(script)) and callable(globals()[test])


@pytest.fixture
def small(root, corpus):
    """A tiny model without dropout, a teacher of the smoke world, a batch of two utterances, and the configuration."""
    torch.manual_seed(0)
    arguments = ["--preset", "smoke", "--teachers", str(teacher_folder(root)), *SMALL]
    config = read_config(*arguments, frequency_masks=0, time_masks=0, dropout=0.0)
    utterances = [replace(u, text=" ".join(u.text.split()[:2])) for u in corpus.train[:2]]
    teachers = script.load_teachers(config, utterances, CPU)
    tokenizer = script.Characters.build(u.text for u in corpus.train)
    models = script.build_models(config, tokenizer.size, [(2, teachers[0].model.config.hidden_size)]).eval()
    batch = script.Batches([MicroBatch(utterances)], config, tokenizer)[0]
    return config, models, teachers, batch


def parts(models, batch):
    """h, g, log p(. | t, u) (B, T, U+1, V), the lengths of h, all in double."""
    recogniser = models["recogniser"].double()
    h, lengths = recogniser(batch.waves.double(), batch.samples)
    g = recogniser.predictor.all_states(batch.targets)
    joint = recogniser.joint
    return h, g, joint(joint.encode(h)[:, :, None], joint.predict(g)[:, None]).log_softmax(-1), lengths


def way_probabilities(log_probs, target):
    """(alignment, its probability) for all alignments of a short stretch: log_probs (T, U+1, V)."""
    for way in alignments(len(log_probs), len(target)):
        yield way, math.exp(sum(log_probs[t, u, target[u] if is_label else 0].item() for t, u, is_label in way))


def test_rnnt_l(small):
    """Over the first frames and labels, so that all alignments can be listed."""
    _, models, _, batch = small
    h, g, log_probs, _ = parts(models, batch)
    joint = models["recogniser"].joint
    for T, U in ((1, 2), (4, 3), (5, 0)):
        target = batch.targets[:1, :U]
        loss, _ = script.rnnt.transducer_loss(
            joint, joint.encode(h[:1, :T]), joint.predict(g[:1, : U + 1]), target, torch.tensor([T]), torch.tensor([U])
        )
        ways = way_probabilities(log_probs[0, :T, : U + 1], target[0].tolist())
        assert loss.item() == pytest.approx(-math.log(sum(p for _, p in ways)), abs=1e-9)


def test_gamma(small):
    _, models, _, batch = small
    h, g, log_probs, _ = parts(models, batch)
    joint, target = models["recogniser"].joint, batch.targets[:1, :3]
    sizes = torch.tensor([4]), torch.tensor([3])
    _, gamma = script.rnnt.transducer_loss(joint, joint.encode(h[:1, :4]), joint.predict(g[:1, :4]), target, *sizes)
    ways = list(way_probabilities(log_probs[0, :4, :4], target[0].tolist()))
    for t, u in itertools.product(range(4), range(3)):
        share = sum(p for way, p in ways if (t, u, True) in way) / sum(p for _, p in ways)
        assert gamma[0, t, u].item() == pytest.approx(share, abs=1e-9)
    assert torch.allclose(gamma.sum(1), torch.ones(1, 3, dtype=torch.float64), rtol=0, atol=1e-9)


def test_c():
    torch.manual_seed(0)
    gamma, h, g = torch.rand(2, 5, 3), torch.randn(2, 5, 4), torch.randn(2, 4, 2)
    c = script.label_features(gamma, h, g)
    assert c.shape == (2, 3, 6)
    for b, u in itertools.product(range(2), range(3)):
        heard = [sum(gamma[b, t, u].item() * h[b, t, d].item() for t in range(5)) for d in range(4)]
        assert c[b, u].tolist() == pytest.approx([*heard, *g[b, u].tolist()], abs=1e-5)


def test_s():
    c = torch.arange(12.0).reshape(2, 3, 2)
    found = script.pool_spans(c, [np.array([(0, 1), (1, 3)]), np.array([(0, 3)])])
    assert found.tolist() == [[[0, 1], [3, 4]], [[8, 9], [0, 0]]]
    assert script.pool_spans(c, [np.zeros((0, 2), int)] * 2).shape == (2, 0, 2)


def test_layers():
    pick = lambda strategy, k, depth: script.choose_layers(strategy, k, depth, random.Random(1))  # noqa: E731
    assert pick("last", 2, 12) == [11, 12] and pick("first", 3, 12) == [1, 2, 3]
    assert [pick("uniform", k, 12) for k in (1, 2, 3, 4)] == [[12], [6, 12], [4, 8, 12], [3, 6, 9, 12]]
    assert pick("uniform", 3, 8) == [3, 5, 8] and pick("uniform", 8, 8) == pick("random", 8, 8) == list(range(1, 9))
    draw, drawn = random.Random(0), []
    for _ in range(200):
        drawn.append(script.choose_layers("random", 2, 4, draw))
        assert drawn[-1] == sorted(set(drawn[-1]))
    assert {layer for layers in drawn for layer in layers} == {1, 2, 3, 4}


@pytest.mark.parametrize("kind", ["l1", "l2", "cosine"])
def test_kd(kind):
    torch.manual_seed(0)
    students, targets = ([torch.randn(2, 3, 4), torch.randn(2, 3, 5)] for _ in range(2))
    real = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    found = script.distillation_loss(students, targets, real, kind)

    def dist(s, e):
        if kind == "cosine":
            norms = math.sqrt(sum(x * x for x in s)) * math.sqrt(sum(x * x for x in e))
            return 1 - sum(x * y for x, y in zip(s, e, strict=True)) / norms
        differences = [abs(x - y) for x, y in zip(s, e, strict=True)]
        return sum(d if kind == "l1" else d * d for d in differences) / len(differences)

    for k in range(2):
        pairs = [
            (students[k][b, i].tolist(), targets[k][b, i].tolist()) for b in range(2) for i in range(3) if real[b, i]
        ]
        assert found[k].item() == pytest.approx(sum(dist(s, e) for s, e in pairs), rel=1e-5)


def test_soft():
    torch.manual_seed(0)
    logits, q = torch.randn(2, 3, 4), torch.rand(2, 3, 4)
    q[..., 0] = q[1, 2] = 0.0
    total = 0.0
    for b, u in itertools.product(range(2), range(3)):
        norm = sum(math.exp(x) for x in logits[b, u, 1:].tolist())
        total -= sum(q[b, u, v].item() * math.log(math.exp(logits[b, u, v]) / norm) for v in (1, 2, 3))
    assert script.soft_label_loss(logits, q).item() == pytest.approx(total, rel=1e-5)


def test_q(conversation):
    """Letter by letter from the masked piece's distribution, looking through the whole vocabulary."""
    arguments, utterances = conversation
    utterances = [*utterances, Utterance("odd", "", "don't 'tis the boys' zürich", 1.0, session="u")]
    config = read_config(*arguments, "--method", "soft_labels", "--context", "4", "--context-mask", "0")
    labels = script.Characters.build(u.text for u in utterances)
    (teacher,) = script.load_teachers(config, utterances, CPU, labels)
    pieces, seen = teacher.spelling.pieces, 0
    together = script.soft_labels(teacher, [u.id for u in utterances], config, 0)
    for utterance, q in zip(utterances, together, strict=True):
        said, ids, spans = teacher.texts[utterance.id]
        assert q.shape == (len(said), labels.size) and not q[:, 0].any()
        expected = torch.zeros(len(said), labels.size)
        read, begin = script.teacher_input(teacher, utterance.id, config, 0)
        for i, (start, end) in enumerate(spans.tolist()):
            masked = torch.tensor([[*read[: begin + i], teacher.special[2], *read[begin + i + 1 :]]])
            p = teacher.model(masked).logits[0, begin + i].softmax(-1).tolist()
            for u in range(start, end + 1):
                if u == len(said) or (u == end and said[u] != " "):
                    continue
                for v, piece in enumerate(pieces):
                    word = piece.removeprefix("##") + " "
                    alike = piece.startswith("##") == pieces[ids[i]].startswith("##") and piece[0] != "["
                    if alike and word.startswith(said[start:u]) and u - start < len(word):
                        expected[u, labels.ids.get(word[u - start], 0)] += p[v]
        expected[:, 0] = 0.0  # letters that the recogniser does not have
        expected /= expected.sum(-1, keepdim=True).clamp(min=1e-30)
        assert torch.allclose(q, expected, atol=1e-5)
        seen += (q.sum(-1) > 0.5).sum().item()
    assert seen > 0.8 * sum(len(u.text) for u in utterances)


def test_loss(small):
    """The parts put together; the teacher gets no gradient, the recogniser's every part gets some from the distance."""
    config, models, teachers, batch = small
    layers = [[1, 2]]
    found = {
        lam: script.compute_losses(models, batch, config, teachers, layers, lam, None)[0].item() for lam in (0, 1, 2)
    }
    _, (rnnt_l, *distances) = script.compute_losses(models, batch, config, teachers, layers, 1.0, None)
    assert rnnt_l == found[0]
    assert found[1] - found[0] == pytest.approx(sum(distances) / 2, rel=1e-4)
    assert found[2] - found[0] == pytest.approx(sum(distances), rel=1e-4)
    alone, only = script.compute_losses(models, batch, config, [], [], 1.0, None)
    assert alone.item() == found[0] == only[0] and len(only) == 1
    gradients = []
    for lam in (0.0, 1.0):
        models.zero_grad()
        script.compute_losses(models, batch, config, teachers, layers, lam, None)[0].backward()
        gradients.append({name: p.grad.clone() for name, p in models["recogniser"].named_parameters()})
    changed = {name.split(".")[0] for name in gradients[0] if not torch.equal(gradients[0][name], gradients[1][name])}
    assert changed == {"encoder", "predictor"}  # the joint network is only reached through gamma, which is detached
    assert all(p.grad is None and not p.requires_grad for p in teachers[0].model.parameters())


def test_half_precision_is_near(small):
    """The whole forward and backward pass under bf16 autocast, teacher included; losses stay fp32."""
    config, models, teachers, batch = small
    results = {}
    for autocast in (None, torch.bfloat16):
        models.zero_grad()
        loss, parts = script.compute_losses(models, batch, config, teachers, [[1, 2]], 1.0, autocast)
        loss.backward()
        results[autocast] = parts, models["recogniser"].encoder.norm.weight.grad
        assert loss.dtype == torch.float32
    (exact, gradient), (near, its_gradient) = results.values()
    assert near == pytest.approx(exact, rel=0.02) and near != exact
    assert (gradient - its_gradient).abs().max() < 0.1 * gradient.abs().max()


# --------------------------------------------------------------------------------------------------------- teacher


def test_every_character_is_in_one_piece(root, corpus):
    config = read_config("--preset", "smoke", "--teachers", str(teacher_folder(root)), "--method", "multirep_kd")
    utterances = [*corpus.train, Utterance("odd", "", "don't 'tis boys' zürich", 1.0)]
    (teacher,) = script.load_teachers(config, utterances, CPU)
    for utterance in utterances:
        covered = [j for start, end in teacher.texts[utterance.id].spans for j in range(start, end)]
        assert covered == [j for j, c in enumerate(utterance.text) if c != " "]
    states = teacher.model.base_model(torch.tensor([[2, 3]]), output_hidden_states=True).hidden_states
    assert len(states) == teacher.model.config.num_hidden_layers + 1


def test_context_is_shared_between_past_and_future():
    take = script.take_context
    past, future = list(range(100)), list(range(200, 300))
    assert take(past, future, 6, "both") == ([97, 98, 99], [200, 201, 202])
    assert take(past, future, 5, "both") == ([98, 99], [200, 201, 202])
    assert take(past, [1], 6, "both") == ([95, 96, 97, 98, 99], [1]) and take([1], future, 4, "both") == (
        [1],
        [200, 201, 202],
    )
    assert take(past, future, 3, "past") == ([97, 98, 99], []) and take(past, future, 2, "future") == ([], [200, 201])
    assert take(past, future, 0, "both") == take([], [], 9, "both") == ([], [])


@pytest.fixture
def conversation(root):
    """Four utterances of a session, not listed in the order in which they began, and one of another session."""
    said = [("c", "the night", 5.0), ("a", "the flour", 0.0), ("b", "our knight", 2.0), ("d", "flour", 9.0)]
    utterances = [Utterance(name, "", text, 1.0, offset, session="s") for name, text, offset in said]
    utterances.append(Utterance("x", "", "night", 1.0, session="t"))
    return ["--preset", "smoke", "--teachers", str(teacher_folder(root)), "--method", "multirep_kd"], utterances


def test_what_a_teacher_reads(conversation):
    arguments, utterances = conversation

    def read(name, *more, epoch=0):
        config = read_config(*arguments, *more)
        (teacher,) = script.load_teachers(config, utterances, CPU)
        (cls, sep, mask), ids = teacher.special, {n: text.ids.tolist() for n, text in teacher.texts.items()}
        found, start = script.teacher_input(teacher, name, config, epoch)
        assert found[0] == cls and found[-1] == sep and found[start : start + len(ids[name])] == ids[name]
        return found[1:-1], ids, mask

    found, ids, _ = read("b")
    assert found == ids["b"]
    found, ids, _ = read("b", "--context", "60", "--context-mask", "0")
    assert found == ids["a"] + ids["b"] + ids["c"] + ids["d"]  # in the order of their beginnings
    found, ids, _ = read("x", "--context", "60", "--context-mask", "0")
    assert found == ids["x"]
    found, ids, _ = read("c", "--context", "60", "--context-mask", "0", "--context-sides", "past")
    assert found == ids["a"] + ids["b"] + ids["c"]
    found, ids, _ = read("b", "--context", "2", "--context-mask", "0")
    assert found == ids["a"][-1:] + ids["b"] + ids["c"][:1]
    found, ids, mask = read("b", "--context", "60", "--context-mask", "1")
    n = len(ids["a"])
    assert found == [mask] * n + ids["b"] + [mask] * (len(found) - n - len(ids["b"]))
    draws = {tuple(read("b", "--context", "60", "--context-mask", "0.5", epoch=epoch)[0]) for epoch in range(9)}
    assert len(draws) > 3


def test_a_text_longer_than_the_teacher_reads(conversation):
    arguments, _ = conversation
    config = read_config(*arguments, "--context", "60")
    utterances = [Utterance(name, "", "the night " * 200, 1.0, session="s") for name in "ab"]
    (teacher,) = script.load_teachers(config, utterances, CPU)
    ids, start = script.teacher_input(teacher, "a", config, 0)
    assert len(ids) == teacher.longest + 2 == teacher.model.config.max_position_embeddings and start == 1
    assert len(teacher.texts["a"].spans) == len(teacher.texts["a"].ids) == teacher.longest


def test_represented_alone_and_in_a_batch(conversation):
    """States stand at the right tokens, whatever the padding; shuffled, token i gets e_{i mod N'} of another."""
    arguments, utterances = conversation
    config = read_config(*arguments, "--context", "8", "--context-mask", "0")
    (teacher,) = script.load_teachers(config, utterances, CPU)

    def represent(names, config, teacher):
        some = [u for name in names for u in utterances if u.id == name]
        batch = script.Batch(torch.zeros(0), *[None] * 3, some, {}, 0, MicroBatch(some))
        return script.represent(teacher, batch, [1, 2], config)

    together = represent("abcdx", config, teacher)
    own = {}
    for b, name in enumerate("abcdx"):
        alone = represent(name, config, teacher)
        ids, start = script.teacher_input(teacher, name, config, 0)
        states = teacher.model.base_model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        n = len(teacher.texts[name].ids)
        own[name] = states[2][0, start : start + n]
        for k in range(2):
            assert torch.allclose(alone[k][0], states[k + 1][0, start : start + n], atol=1e-5)
            assert torch.allclose(together[k][b, :n], alone[k][0], atol=1e-5)
    shuffled = replace(config, control="shuffle")
    silent = Utterance("silent", "", "", 1.0, session="u")  # is nobody's partner
    (teacher,) = script.load_teachers(shuffled, [*utterances, silent], CPU)
    assert sorted(teacher.partners) == sorted(teacher.partners.values()) and all(
        a != b for a, b in teacher.partners.items()
    )
    for b, (name, partner) in enumerate(sorted(teacher.partners.items())):
        found = represent("abcdx", shuffled, teacher)[1][b]
        for i in range(len(teacher.texts[name].ids)):
            assert torch.allclose(found[i], own[partner][i % len(own[partner])], atol=1e-5)
    normed = represent("ab", replace(config, target_norm=True), teacher)[0]
    assert normed.mean(-1).abs().max() < 1e-5 and (normed.std(-1, correction=0) - 1).abs().max() < 1e-2


@pytest.mark.parametrize("options", ["", "--control shuffle", "--context 8 --context-mask 0 --target-norm"])
def test_asked_once_is_asked_at_every_step(conversation, options):
    """And kept: the same states in whatever order, to the bit; nothing where something is drawn."""
    arguments, utterances = conversation
    config = read_config(*arguments, *options.split())
    (online,), (once,), (again,) = (script.load_teachers(config, utterances, CPU) for _ in range(3))
    names = [u.id for u in utterances]
    script.ask_once(once, names, [1, 2], config, CPU)
    script.ask_once(again, names[::-1], [1, 2], config, CPU)
    assert set(once.known) == set(names) and all(torch.equal(once.known[n], again.known[n]) for n in names)
    batch = script.Batch(torch.zeros(0), *[None] * 3, utterances, {}, 0, MicroBatch(utterances))
    for a, b in zip(*(script.represent(t, batch, [1, 2], config) for t in (online, once)), strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-5)
    for drawn in (replace(config, teacher_layers="random"), replace(config, context=8, context_mask=0.1)):
        script.ask_once(online, names, [1, 2], drawn, CPU)
        assert not online.known


def test_an_untrained_teacher(conversation):
    arguments, utterances = conversation
    (trained,), (random_one,), (again,) = (
        script.load_teachers(read_config(*arguments, "--control", control), utterances, CPU)
        for control in ("none", "random", "random")
    )
    weights = [dict(t.model.named_parameters()) for t in (trained, random_one, again)]
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(weights[0][name], weights[1][name]) and torch.equal(weights[1][name], weights[2][name])


@pytest.mark.parametrize("strategy", ["last", "first", "uniform", "random"])
def test_more_layers_than_there_are(strategy):
    config = read_config(
        "--method", "multirep_kd", "--preset", "smoke", "--teacher-layers", strategy, "--n-layers", "3"
    )
    with pytest.raises(UserError, match="--n-layers 3 is more than the 2 layers"):
        script.build_models(config, 9, [(2, 8)])


def test_mixing_adds_power_where_both_speak():
    torch.manual_seed(0)
    frontend = script.LogMel()
    frontend.mean.fill_(-3.0), frontend.std.fill_(2.0)
    x, frames = torch.randn(2, 4, 80), torch.tensor([4, 2])
    assert script.mix_utterances(x, frames, 0.0, frontend) is x
    found, power = script.mix_utterances(x, frames, 1.0, frontend), lambda z: (z * 2 - 3).exp()
    assert torch.equal(found[:, 2:], x[:, 2:])  # one of the two is silent there
    assert torch.allclose(power(found[:, :2]), power(x[:, :2]) + 0.4 * power(x[:, :2].flip(0)), rtol=1e-3)
    assert torch.equal(script.mix_utterances(x[:1], frames[:1], 1.0, frontend), x[:1])
    shares = [(script.mix_utterances(x, frames, 0.3, frontend) != x).any((1, 2)).float().mean() for _ in range(300)]
    assert torch.stack(shares).mean().item() == pytest.approx(0.3, abs=0.06)


# ------------------------------------------------------------------------------------------------------------ runs


def test_a_finished_run(finished):
    folder = finished / "run"
    files = {p.name for p in folder.iterdir()}
    assert files >= {"config.json", "log.jsonl", "last.pt", "model.safetensors", "tokenizer.json", "result.json"}
    assert files >= {"hyp_test.txt", "loss.png", "lattice.png", "distances.png"}
    exported = {name.split(".")[0] for name in run.load_weights(folder / "model.safetensors")}
    assert exported == {"frontend", "encoder", "predictor", "joint"}  # no heads
    trained = torch.load(folder / "last.pt", weights_only=True)["model"]
    assert {name.split(".")[0] for name in trained} == {"recogniser", "heads"}
    result = json.loads((folder / "result.json").read_text())
    assert result["method"] == "multirep_kd" and 0 < result["wer"]["test"] <= 110 and result["rtf"] > 0
    updates = [entry for entry in run.read_log(folder) if "loss" in entry]
    assert len(updates) >= 25 and {len(entry["kd"]) for entry in updates} == {1}
    assert len({name for entry in updates for name in entry["kd"]}) == 2  # both layers were drawn in five epochs
    assert sum(entry["loss"] for entry in updates[-7:]) < 0.9 * sum(entry["loss"] for entry in updates[:7])


def test_without_weight_the_run_is_the_baselines(finished, options, tmp_path):
    """lam 0: heads and teacher are there, and every bit of the recogniser is as without them."""
    data = ["--data", str(finished / "data"), "--max-steps", "6", "--dropout", "0.1", "--clip", "0.5"]
    script.main([*options, *data, "--lam", "0", "--out", str(tmp_path / "zero")])
    script.main([*options, *data, "--method", "rnnt", "--out", str(tmp_path / "rnnt")])
    script.main([*options, *data, "--out", str(tmp_path / "one")])
    zero, rnnt, one = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("zero", "rnnt", "one"))
    assert zero == rnnt != one


def test_soft_labels_run(finished, options, tmp_path):
    """They reach the joint network; without weight the run is the baseline's; no heads, and the same model exported."""
    data = ["--data", str(finished / "data"), "--max-steps", "6", "--dropout", "0.1"]
    script.main([*options, *data, "--method", "rnnt", "--out", str(tmp_path / "rnnt")])
    for weight in ("0", "1"):
        more = ["--method", "soft_labels", "--soft-lam", weight, "--out", str(tmp_path / weight)]
        result = script.main([*options, *data, *more])
        assert result["method"] == "soft_labels" and result["teacher_seconds"] > 0
    rnnt, zero, one = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("rnnt", "0", "1"))
    assert rnnt == zero != one
    updates = [entry for entry in run.read_log(tmp_path / "1") if "loss" in entry]
    assert all(len(entry["kd"]) == 1 and min(entry["kd"].values()) > 0 for entry in updates)
    with pytest.raises(UserError, match="shuffle goes with"):
        script.main([*options, *data, "--method", "soft_labels", "--control", "shuffle", "--out", str(tmp_path / "x")])


def test_killed_and_resumed_it_ends_bit_identical(finished, options, tmp_path):
    """With the teacher online, its context masked, its layers drawn anew every epoch: kill -9 twice, then on."""
    folder = tmp_path / "killed"
    arguments = [*options, *RANDOM, "--data", str(finished / "data"), "--out", str(folder)]
    for moment, lines in enumerate([9, 20]):
        process = start_run([*arguments, *(["--resume"] if moment else [])], tmp_path, "multirep_kd.py")
        wait_for_log(folder, lines, process)
        process.send_signal(signal.SIGKILL)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == -signal.SIGKILL, error
        assert not (folder / "model.safetensors").exists()
    script.main([*arguments, "--resume"])
    assert log_without_clocks(folder) == log_without_clocks(finished / "run")
    assert (folder / "model.safetensors").read_bytes() == (finished / "run" / "model.safetensors").read_bytes()


def test_two_ranks_and_accumulation_are_one_rank(finished, options, tmp_path):
    common = [*options, "--data", str(finished / "data"), "--max-steps", "1", "--context", "20", "--ramp", "0"]
    common += ["--update-seconds", "20", "--seed", "5"]
    whole = script.main([*common, "--out", str(tmp_path / "whole")])
    parts = script.main([*common, "--out", str(tmp_path / "parts"), "--batch-seconds", "5"])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(REPOSITORY / "multirep_kd.py"), *common, "--out", str(tmp_path / "ranks")]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("RESULT") == 1
    ranks = json.loads((tmp_path / "ranks" / "result.json").read_text())
    entry, gradients = first_update(tmp_path / "whole")
    assert entry["utterances"] >= 6
    for result, folder in ((parts, "parts"), (ranks, "ranks")):
        other, other_gradients = first_update(tmp_path / folder)
        assert other["loss"] == pytest.approx(entry["loss"], rel=1e-5) and other["utterances"] == entry["utterances"]
        assert other["kd"] == pytest.approx(entry["kd"], rel=1e-5)
        largest = max(g.abs().max() for g in gradients)
        assert all((a - b).abs().max() <= 1e-5 * largest for a, b in zip(gradients, other_gradients, strict=True))
        assert result["wer"] == whole["wer"]


@pytest.fixture(scope="session")
def babbling(finished, tmp_path_factory) -> Path:
    """The finished run with a loud random joint network: so little training leaves it silent, and words are wanted."""
    folder = tmp_path_factory.mktemp("babbling-rnnt") / "run"
    shutil.copytree(finished / "run", folder)
    weights, draw = run.load_weights(folder / "model.safetensors"), torch.Generator().manual_seed(1)
    weights["joint.output.weight"].normal_(generator=draw)
    weights["joint.encode.weight"] *= 30  # what it says depends on the frame
    weights["joint.output.bias"].zero_()
    run.save_weights(folder / "model.safetensors", weights)
    return folder


@pytest.mark.parametrize("search", [[], ["--decode", "beam", "--beam", "3", "--bonus", "0"]])
def test_transcribing_with_times(finished, babbling, options, corpus, capsys, search):
    files = [u.audio for u in corpus.train[:4]]
    arguments = ["--checkpoint", str(babbling), *search, "--transcribe", *files]
    script.main(arguments)
    texts = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    script.main([*arguments, "--times"])
    timed: dict[str, list[tuple[float, float, str]]] = {}
    for line in capsys.readouterr().out.splitlines():
        path, start, end, word = line.split("\t")
        timed.setdefault(path, []).append((float(start), float(end), word))
    assert list(texts) == files and any(texts.values())
    for path, words in timed.items():
        assert " ".join(word for *_, word in words) == texts[path]
        starts = [start for start, *_ in words]
        assert starts == sorted(starts) and all(start < end for start, end, _ in words)
    if search:
        with pytest.raises(UserError, match="one --lm-weight and one --bonus"):
            script.main([*arguments, "--bonus", "0,1"])


def test_a_checkpoint_scores_by_beam(finished, babbling, capsys):
    result = script.main(
        ["--checkpoint", str(babbling), "--data", str(finished / "data"), "--decode", "beam", "--beam", "2"]
    )
    assert result["decode"] == "beam" and result["rtf"] > 0 and result["greedy_rtf"] > 0
    assert (babbling / "score-data-beam" / "hyp_test.txt").read_text().count("REF: ") == 6


def test_beam_search_with_a_language_model(finished, babbling, root, tmp_path, capsys):
    """Its weight and the bonus are tuned on dev."""
    lm = str(build_model(root / "demo-smoke", "lm", small=True))
    search = ["--checkpoint", str(babbling), "--data", str(finished / "data"), "--decode", "beam", "--beam", "2"]
    result = script.main([*search, "--lm", lm, "--lm-weight", "0.1,2", "--bonus", "0,1", "--out", str(tmp_path / "s")])
    tuned = re.findall(r"dev WER ([\d.]+) %", capsys.readouterr().err)
    assert len(tuned) == 4 and all(float(rate) > 0 for rate in tuned)
    assert result["lm"] == lm and result["lm_weight"] in (0.1, 2) and result["bonus"] in (0, 1)


@pytest.mark.parametrize("wrong, message", [
    ("--noise 2", "--noise, --ramp and --context-mask are shares"), ("--lam -1", "must not be negative"),
    ("--lm demo/lm", "--lm goes with --decode beam"), ("--n-layers 0", "--n-layers must be more than 0"),
    ("--heads 3", "--heads must divide --dim"),
])  # fmt: skip
def test_values_that_make_no_sense(wrong, message):
    with pytest.raises(UserError, match=message):
        script.main(["--preset", "smoke", "--method", "rnnt", *wrong.split()])


def test_the_full_preset_has_71_million_parameters(capsys):
    total = script.main(["--preset", "full", "--summary"])["total"]
    assert abs(total / 71e6 - 1) < 0.02
    assert "regression networks" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------- siblings


@pytest.mark.parametrize("name", [
    "batches", "Batches.__init__", "Batches.__len__", "decode", "evaluate",
    "real_time_factor", "load",
])  # fmt: skip
def test_the_plumbing_of_the_scripts_is_the_same(name):
    ours, theirs = (inspect.getsource(operator.attrgetter(name)(module)) for module in (script, interaed_kd))
    assert ours == theirs


def test_the_sections_of_the_scripts_are_the_same():
    titles = [re.findall(r"^# =+ (.*)$", inspect.getsource(module), re.M) for module in (script, interaed_kd)]
    assert titles[0] == titles[1]
