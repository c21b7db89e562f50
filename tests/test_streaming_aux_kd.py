"""streaming_aux_kd.py: its equations in plain Python, what depends on the future, and where the teacher comes from."""

import itertools
import math
import operator
import os
import re
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import AUGMENTED, SMALL, Script, loud, read_configs, write_data
from test_rnnt import by_hand

import streaming_aux_kd as script
from common.conformer import Encoded, chunk_mask
from common.dependencies import measure
from common.errors import UserError
from common.figures import read_log
from common.running import delays, options
from common.running.batches import MicroBatch, make_batch, read_corpus
from common.running.corpora import Utterance, trainable
from common.running.decoding import Transcript, Word
from common.running.process import Place, reseed
from common.running.weights import load_weights
from streaming_aux_kd import branch_mask, compute_losses, future_loss, predict_ahead
from variants.streaming_aux_kd import (
    apc_beyond_the_chunk,
    apc_inside_the_chunk,
    shuffled_teacher,
    token_kd_delay_2,
    token_kd_delay_4,
    untrained_teacher,
)


def talking_pieces(weights: dict) -> None:
    loud(weights)
    weights["joint.output.bias"][1] = -99.0  # <unk>


ENTRY = Script(
    methods=("scratch", "aux_kd"),
    teacher="--teacher",
    small=f"{SMALL} --units 60",
    random=AUGMENTED,
    exported={"frontend", "encoder", "predictor", "joint"},
    trained={"recogniser", "branches"},
    files={"dependencies.png", "features.png"},
    report={"emission_delay"},
    make_talk=talking_pieces,
    other={"size": "demo"},
    beam=False,
    stage="--teacher",
    stage_method="teacher",
)


CPU = Place(0, 1, torch.device("cpu"))
V = 12


def read_config(row: str) -> script.Config:
    (config,) = read_configs("streaming_aux_kd", f"--preset smoke --method {row}".split())
    return config


def batch_of(waves: list[torch.Tensor], labels: list[list[int]]):
    return make_batch(waves, labels, [str(b) for b in range(len(waves))], {}, 0, MicroBatch([]))


def build(row: str, seconds=(1.3, 0.7)) -> SimpleNamespace:
    """A tiny student with what is trained beside it, an untrained teacher, and a batch of noise with 5, 4, … labels."""
    config = read_config(row)
    reseed(1)
    teacher = script.Recogniser(replace(config, methods=("teacher",)), V).eval()
    models = script.build_models(config, V)
    waves = [torch.randn(round(16000 * s)) * torch.rand(()) for s in seconds]
    batch = batch_of(waves, [torch.randint(1, V, (5 - b,)).tolist() for b in range(len(waves))])
    return SimpleNamespace(
        config=config, teacher=teacher if row != "scratch" else None, models=models, batch=batch
    )


def losses_of(made, batch=None, place=CPU, **changes):
    return compute_losses(
        made.models, batch or made.batch, made.teacher, replace(made.config, **changes), place
    )


def gradients(made, batch=None, **changes) -> dict[str, torch.Tensor]:
    made.models.zero_grad()
    losses_of(made, batch, **changes)[0].backward()
    return {
        name: p.grad.clone() for name, p in made.models.named_parameters() if p.grad is not None
    }


# ----------------------------------------------------------------------------------------------------------- equations


def test_the_equation_map_names_what_exists():
    rows = re.findall(r" {2,}(\S+) {2,}(test_\w+)$", script.__doc__, re.M)
    assert len(rows) == 10
    for function, test in rows:
        assert callable(operator.attrgetter(function)(script)) and callable(globals()[test])


def test_mask():
    for c, left in ((4, 16), (4, 0), (2, 6), (1, 3)):
        expected = [[0 <= i // c - j // c <= left / c for j in range(29)] for i in range(29)]
        assert chunk_mask(29, c, left).tolist() == expected


def test_rnnt():
    """Of the whole student, with its chunks, against an enumeration of all alignments."""
    made = build("scratch", (0.35, 0.24))
    loss, parts = losses_of(made)
    student, batch, expected = made.models["recogniser"], made.batch, 0.0
    encoded = student.joint.encode(student.encoder(*student.normalised_features(batch)).output)
    for b, (T, U) in enumerate([(8, 5), (5, 4)]):
        predicted = student.joint.predict(
            student.predictor.all_states(batch.targets[b : b + 1, :U])
        )
        log_probs = student.joint(encoded[b, :T, None], predicted).log_softmax(-1)  # (T, U+1, V)
        expected += by_hand(log_probs.double(), batch.targets[b, :U].tolist()).item()
    assert loss.item() == parts["rnnt"].item() == pytest.approx(expected, rel=1e-5) and list(
        parts
    ) == ["rnnt"]


def distance(h: torch.Tensor, z: torch.Tensor) -> float:
    """d(h, z) of two frames (D,), in plain Python."""
    normed, dot = [], lambda a, b: sum(map(operator.mul, a, b))
    for x in (h.tolist(), z.tolist()):
        mean = sum(x) / len(x)
        normed.append(
            [(v - mean) / math.sqrt(sum((w - mean) ** 2 for w in x) / len(x) + 1e-5) for v in x]
        )
    h, z = normed
    cosine = dot(h, z) / math.sqrt(dot(h, h) * dot(z, z))
    return sum(abs(a - b) for a, b in zip(h, z, strict=True)) / len(h) + math.log(
        1 + math.exp(-cosine)
    )


def features(T: int = 9, lengths=(9, 5)) -> SimpleNamespace:
    """Of a teacher's layer and a branch: two utterances of random frames."""
    torch.manual_seed(0)
    (h, z, r), qkv = torch.randn(3, 2, T, 6), torch.randn(2, 2, T, 3, 2, 3)
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    return SimpleNamespace(h=h, z=z, r=r, teachers_qkv=qkv[0], qkv=qkv[1], mask=mask)


def test_d():
    x = features()
    found = script.feature_distance(
        3 * x.h + 1, x.z.bfloat16()
    )  # scale and offset of a frame do not count
    for b, t in itertools.product(range(2), range(9)):
        assert found[b, t].item() == pytest.approx(
            distance(x.h[b, t], x.z[b, t].bfloat16()), rel=1e-3
        )


def test_dis():
    x = features()
    expected = sum(distance(x.h[b, t], x.z[b, t]) for b, T in ((0, 9), (1, 5)) for t in range(T))
    assert script.distance_loss(x.h, x.z, x.mask).item() == pytest.approx(expected, rel=1e-4)
    assert script.feature_distance(x.h, x.h).sum() == pytest.approx(0.3133 * 18, rel=1e-3)  # not 0


def test_kld():
    x, expected = features(), 0.0

    def relations(qkv, b, kind, a, t, T):
        x = qkv[b, :T, kind, a].tolist()
        scores = [math.exp(sum(map(operator.mul, x[t], x[k])) / math.sqrt(3)) for k in range(T)]
        return [score / sum(scores) for score in scores]

    for b, T in enumerate((9, 5)):
        for kind, a, t in itertools.product(range(3), range(2), range(T)):
            p, q = (relations(qkv, b, kind, a, t, T) for qkv in (x.teachers_qkv, x.qkv))
            expected += sum(pk * math.log(pk / qk) for pk, qk in zip(p, q, strict=True)) / 2
    found = script.relation_loss(x.teachers_qkv, x.qkv, x.mask)
    assert found.item() == pytest.approx(expected, rel=1e-4)
    assert script.relation_loss(x.qkv, x.qkv, torch.ones(2, 9).bool()) == 0


@pytest.mark.parametrize(("n", "share"), [(1, 3 / 4), (2, 1 / 2), (4, 0), (8, 0), (9, 0)])
def test_apc(n, share):
    """All targets, and by variants those inside and beyond the chunk of 4 frames; there are none in n frames."""
    x = features(24, (24, 9))
    inside = beyond = 0.0
    for b, T in enumerate((24, 9)):
        for t in range(T - n):
            d = distance(x.h[b, t + n], x.r[b, t])
            if (t + n) // 4 == t // 4:
                inside += d
            else:
                beyond += d
    assert future_loss(x.h, x.r, x.mask, n).item() == pytest.approx(inside + beyond, rel=1e-4)
    found = apc_inside_the_chunk.loss_inside(x.h, x.r, x.mask, n)
    assert found.item() == pytest.approx(inside, rel=1e-4)
    found = apc_beyond_the_chunk.loss_beyond(x.h, x.r, x.mask, n)
    assert found.item() == pytest.approx(beyond, rel=1e-4)
    assert sum((t + n) // 4 == t // 4 for t in range(4000)) / 4000 == share
    short = features(n, (n, 1))
    for loss in (future_loss, apc_inside_the_chunk.loss_inside, apc_beyond_the_chunk.loss_beyond):
        assert loss(short.h, short.r, short.mask, n) == 0.0


@pytest.mark.parametrize("method", ["layer_kd", "aux_kd"])
def test_loss(method):
    """The parts put together, over two layers; the teacher's come from the same features, and it learns nothing."""
    made = build(f"{method} --kd-every 1")
    loss, parts = losses_of(made)
    weights = {"dis": 0.01, "kld": 0.0005, "apc": 0.005}
    kd = sum(weights[name] * cost.item() for name, cost in parts["kd"].items())
    for lam in (0.0, 1.0, 3.0):
        expected = parts["rnnt"].item() + lam * kd
        assert losses_of(made, kd_weight=lam)[0].item() == pytest.approx(expected, rel=1e-5)
    student = made.models["recogniser"]
    features = student.normalised_features(made.batch)
    own, full = (model.encoder(*features, [1, 2]) for model in (student, made.teacher))
    mask = torch.arange(own.output.shape[1]) < own.lengths[:, None]
    expected = dict.fromkeys(weights, 0.0)
    for layer, s, h in zip("12", own.taps, full.taps, strict=True):
        branch = made.models["branches"][layer]
        z, qkv = branch(s.raw, s.qkv, own.lengths)
        assert method == "aux_kd" or z is s.raw and qkv is s.qkv
        expected["dis"] += script.distance_loss(h.raw, z, mask)
        expected["kld"] += script.relation_loss(h.qkv, qkv, mask)
        expected["apc"] += future_loss(h.raw, branch.lstm(z)[0], mask, 2)
    assert parts["kd"].keys() == expected.keys()
    assert all(torch.allclose(cost, expected[name]) for name, cost in parts["kd"].items())
    near, parts = losses_of(made, place=CPU._replace(dtype=torch.bfloat16))
    assert near.item() == pytest.approx(loss.item(), rel=0.02)
    assert {x.dtype for x in (near, parts["rnnt"], *parts["kd"].values())} == {torch.float32}


@pytest.mark.parametrize("method", ["token_kd", "layer_kd", "aux_kd"])
def test_student_and_teacher_hear_the_same(method):
    """SpecAugment and all: one drawing, two encoders."""
    made, heard = build(f"{method} --frequency-masks 2 --time-masks 10"), []
    for model in (made.models["recogniser"], made.teacher):
        model.encoder.register_forward_pre_hook(lambda module, inputs: heard.append(inputs))
    losses_of(made)
    (mine, frames), (teachers, same) = (inputs[:2] for inputs in heard)
    made.models["recogniser"].eval()
    plain, _ = made.models["recogniser"].normalised_features(made.batch)
    assert (
        torch.equal(mine, teachers) and torch.equal(frames, same) and not torch.equal(mine, plain)
    )


def test_token():
    """Over every node of the full lattice, also those behind the last label."""
    made = build("token_kd", (1.3, 0.7, 0.5))
    (loss, parts), expected = losses_of(made), 0.0
    features, frames = made.models["recogniser"].normalised_features(made.batch)
    for b, (T, U) in enumerate([(32, 5), (17, 4), (12, 3)]):
        labels, q = made.batch.targets[b, :U].tolist(), []
        for model in (made.teacher, made.models["recogniser"]):
            encoded = model.joint.encode(model.encoder(features, frames).output[b, :T])
            predicted = model.joint.predict(model.predictor.all_states(torch.tensor([labels])))
            probs = model.joint(encoded[:, None], predicted).softmax(-1).tolist()  # (T, U+1, V)
            probs = [
                [(p, p[y] if y else 0.0) for p, y in zip(row, [*labels, 0], strict=True)]
                for row in probs
            ]
            q.append(
                [[(correct, p[0], sum(p[1:]) - correct) for p, correct in row] for row in probs]
            )
        for t, u in itertools.product(range(T), range(U + 1)):
            expected += sum(
                x * math.log(x / y) for x, y in zip(q[0][t][u], q[1][t][u], strict=True) if x
            )
    assert parts["kd"]["token"].item() == pytest.approx(expected, rel=1e-4)
    assert loss.item() == pytest.approx(parts["rnnt"].item() + 0.001 * expected, rel=1e-5)


def test_token_kd_delay():
    """A student that says the same later loses nothing if it may be that late; means, not sums, are compared."""
    torch.manual_seed(0)
    teacher = (2 * torch.randn(2, 6, 3, 3)).log_softmax(-1)
    sizes = torch.tensor([6, 2]), torch.tensor([2, 1])

    def loss(student, longest):
        return token_kd_delay_2.best_shift(teacher, student, *sizes, longest).tolist()

    for late in (0, 1, 2):
        student = torch.cat([torch.randn(2, late, 3, 3).log_softmax(-1), teacher[:, : 6 - late]], 1)
        for delay in (0, 1, 2, 9):
            first, second = loss(student, delay)  # the second has two frames
            assert (first == pytest.approx(0, abs=1e-5)) == (delay >= late)
            is_zero = second == pytest.approx(0, abs=1e-5)
            assert math.isfinite(second) and is_zero == (delay >= late < 2)
    student = torch.randn(2, 6, 3, 3).log_softmax(-1)
    for b, (T, U) in enumerate([(6, 2), (2, 1)]):
        means = []
        for d in range(min(3, T)):
            p = teacher[b, : T - d, : U + 1].flatten()
            pairs = zip(p, student[b, d:T, : U + 1].flatten(), strict=True)
            means.append(sum(math.exp(p) * (p - q).item() for p, q in pairs) / ((T - d) * (U + 1)))
        assert loss(student, 2)[b] == pytest.approx(min(means) * T * (U + 1), rel=1e-4)
    assert loss(student, 0) == pytest.approx(script.token_loss(teacher, student, *sizes).tolist())
    for variant, longest in ((token_kd_delay_2, 2), (token_kd_delay_4, 4)):
        assert variant.delayed_loss(teacher, student, *sizes).tolist() == loss(student, longest)


# ------------------------------------------------------------------------------------------- what depends on the future


@torch.inference_mode()
@pytest.mark.parametrize("kind, rows, reached", [
    ("none", "1111 1111 1111 1111", 38), ("causal", "1000 1100 1110 1111", 0), ("hole", "1001 1100 1110 1111", 37)
])  # fmt: skip
def test_what_a_branch_does_not_see(kind, rows, reached):
    """The LSTM brings back most of what the hole hides: all but the first frame's target."""
    mask = branch_mask(4, kind, 2)
    branch = build(f"aux_kd --aux-mask {kind}").models["branches"]["2"]
    assert mask.int().tolist() == [[int(x) for x in row] for row in rows.split()]

    def z(s: torch.Tensor) -> torch.Tensor:
        return branch(s[None], None, torch.tensor([len(s)]))[0][0]

    def r(s: torch.Tensor) -> torch.Tensor:
        return predict_ahead(branch.lstm, z(s)[None])[0]

    assert torch.equal(measure(z, torch.randn(4, 64), 1, 1), mask)
    assert measure(r, torch.randn(40, 64), 1, 1).diagonal(2).sum() == reached


@pytest.mark.parametrize(("kind", "leaks"), [("hole", True), ("causal", False)])
def test_the_hole_leaks(kind, leaks):
    """r_5 has a gradient from the frame of its own target, 7, by way of z_4, which attends it, and the LSTM."""
    branch = build(f"aux_kd --aux-mask {kind}").models["branches"]["2"].eval()
    s = torch.randn(1, 12, 64, requires_grad=True)
    z, _ = branch(s, None, torch.tensor([12]))
    predict_ahead(branch.lstm, z)[0, 5].sum().backward(retain_graph=True)
    assert s.grad[0, 7].any() == leaks
    s.grad = None
    z[0, 5].sum().backward(retain_graph=True)
    assert not s.grad[0, 7].any()  # not directly
    s.grad = None
    z[0, 4].sum().backward()
    assert s.grad[0, 7].any() == leaks


@torch.inference_mode()
def test_who_hears_the_future():
    """Chunk by chunk: teacher and branch see it; the student, and the queries, keys, values of L_kld, do not."""
    made = build("aux_kd")
    x = torch.randn(6 * 16, 80, generator=torch.Generator().manual_seed(0))
    branch = made.models["branches"]["2"]
    encoders = {"s": made.models["recogniser"].encoder, "h": made.teacher.encoder}

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        encoder = encoders["h" if name == "h" else "s"]
        output, lengths, (tap,) = encoder(x[None], torch.tensor([len(x)]), [2])
        z, qkv = branch(tap.raw, tap.qkv, lengths)
        r = predict_ahead(branch.lstm, z)
        return {"s": output, "h": tap.raw, "z": z, "r": r, "qkv": qkv}[name][0]

    for name in ("s", "qkv", "h", "z", "r"):
        expected = torch.ones(6, 6).tril(0 if name in ("s", "qkv") else 5).bool()
        assert torch.equal(measure(partial(layer, name), x, 16, 4), expected), name


@pytest.mark.parametrize("row", ["token_kd", "token_kd delayed", "layer_kd", "aux_kd"])
def test_padding_changes_no_loss(row, monkeypatch):
    """Nor do utterances of 2 frames and 1, which have no target two frames ahead, and no shift by 4."""
    row, *delayed = row.split()
    if delayed:
        monkeypatch.setattr(script, "token_loss", token_kd_delay_4.delayed_loss)
    made, alone, batches = build(row, (1.3, 0.7, 0.1, 0.06)), [], []
    loss, parts = losses_of(made)
    for wave, n, target, U in zip(*made.batch[:4], strict=True):
        batches.append(batch_of([wave[:n]], [target[:U].tolist()]))
        alone.append(losses_of(made, batches[-1]))
    assert loss.item() == pytest.approx(sum(x.item() for x, _ in alone), rel=1e-5)
    for name, cost in parts["kd"].items():
        assert cost.item() == pytest.approx(sum(p["kd"][name].item() for _, p in alone), rel=1e-4)
        assert "apc" not in name or cost > 0 == alone[2][1]["kd"][name] == alone[3][1]["kd"][name]
    for batch in batches:
        assert all(g.isfinite().all() for g in gradients(made, batch).values())
    monkeypatch.setattr(script, "ask_teacher", shuffled_teacher.ask_about_another)
    assert all(g.isfinite().all() for g in gradients(made).values())


@pytest.mark.parametrize("row", ["token_kd", "aux_kd"])
def test_a_shuffled_teacher(row, monkeypatch):
    """It reads the other utterance; where there is none, so as it happens where memory is small, nobody teaches."""
    monkeypatch.setattr(script, "ask_teacher", shuffled_teacher.ask_about_another)
    made = build(row)
    mel, frames = made.models["recogniser"].eval().normalised_features(made.batch)
    full = shuffled_teacher.ask_about_another(made.teacher, mel, frames, [2])
    plain = made.teacher.encoder(mel, frames, [2])
    assert torch.allclose(full.output, plain.output.roll(1, 0), atol=1e-5)
    assert full.lengths.tolist() == [min(plain.lengths.tolist())] * 2
    assert isinstance(full, Encoded)
    alone = build(row, (0.7,))
    loss, parts = losses_of(alone)
    assert not any(cost.any() for cost in parts["kd"].values()) and loss == parts["rnnt"]


def test_the_delay_is_how_much_later_a_word_ends_than_the_teachers(corpus, monkeypatch):
    """ms, mean over words that both get right: one 80 ms later, one 40 ms earlier, one that the teacher missed."""
    made, (u,) = build("aux_kd"), corpus.dev[:1]
    student = made.models["recogniser"]
    tests = replace(corpus, tests={"test": [replace(u, text="a b c")], "other": []})
    ends = {
        id(made.teacher): {"a": 0.5, "b": 1.0},
        id(student): {"a": 0.58, "b": 0.96, "c": 2.0},
    }

    def decode(recogniser, utterances, config, place):
        found = [Word(word, 0.0, end) for word, end in ends[id(recogniser)].items()]
        return {u.id: Transcript(" ".join(word.text for word in found), found) for u in utterances}

    monkeypatch.setattr(delays, "decode", decode)
    assert delays.emission_delay(student, made.teacher, tests, made.config, CPU) == 20.0


def test_without_a_word_that_both_get_right_there_is_no_delay(corpus):
    made = build("aux_kd")
    student = made.models["recogniser"].eval()
    for recogniser in (made.teacher, student):
        recogniser.tokenizer = SimpleNamespace(decode=lambda _: "")
        recogniser.joint.output.bias.data[0] = 1e4  # always the blank
    tests = replace(corpus, tests={"test": corpus.dev[:2]})
    assert delays.emission_delay(student, made.teacher, tests, made.config, CPU) is None


def test_an_utterance_that_cannot_be_read_is_not_drawn(tmp_path):
    made, lost = build("aux_kd"), Utterance("x", str(tmp_path / "x.flac"), "a", 1.0)
    config = replace(made.config, out=str(tmp_path))
    with pytest.raises(UserError, match="short enough and can be read"):
        script.draw_features(config, made.models, made.teacher, [lost])
    assert not list(tmp_path.iterdir())


def test_whom_the_losses_teach():
    for row in (
        "token_kd",
        "layer_kd",
        "aux_kd",
        "aux_kd --losses dis",
        "aux_kd --losses kld",
        "aux_kd --losses apc",
    ):
        made = build(row)
        without, with_kd = gradients(made, kd_weight=0.0), gradients(made)
        taught = {name for name, g in with_kd.items() if not torch.equal(g, without[name])}
        assert any(
            name.startswith("recogniser.encoder.blocks.0") for name in taught
        )  # through s_l, not detached
        assert all(p.grad is None for p in made.teacher.parameters())
    assert all(
        g.any() for name, g in gradients(build("aux_kd")).items() if name.startswith("branches")
    )


def test_students_begin_and_end_alike():
    """With the weights of scratch, whatever is trained beside them; a teacher of the same seed begins otherwise."""
    first = {}
    for method in ("teacher", "scratch", "token_kd", "layer_kd", "aux_kd"):
        reseed(1, int(method != "teacher"))
        first[method] = script.build_models(read_config(method), V)["recogniser"].state_dict()
        assert list(first[method]) == list(first["teacher"])
    for name, x in first["scratch"].items():
        assert all(
            torch.equal(x, first[method][name]) for method in ("token_kd", "layer_kd", "aux_kd")
        )
        assert x.dim() < 2 or not torch.equal(x, first["teacher"][name])


# ---------------------------------------------------------------------------------------------------- runs and teachers


@pytest.mark.slow
def test_a_teacher_is_trained_gone_on_with_and_refused(corpus, tmp_path, monkeypatch):
    """Stopped in the teacher's training, then in the student's; both end as if nothing had happened."""
    data, seen = (
        write_data(tmp_path / "data", corpus.train[:6], corpus.dev[:1], corpus.dev[1:2]),
        [],
    )
    words = f"--preset smoke --data {data} --epochs 1 --units 40 --update-seconds 4 --device cpu --out {tmp_path}"
    run = f"{words}/aux --method aux_kd".split()
    monkeypatch.chdir(tmp_path)  # where it is by default
    first = Path("runs/streaming_aux_kd-data-teacher-s1")

    def disturbed(*arguments):
        seen.append(arguments[3].method)
        if len(seen) == 2 or seen.count("aux_kd") == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute_losses(*arguments)

    monkeypatch.setattr(script, "compute_losses", disturbed)
    for more, stage in (([], first), (["--resume"], "aux")):
        with pytest.raises(UserError, match="stopped after update 2: go on with --resume"):
            script.main([*run, *more])
        assert not (tmp_path / stage / "model.safetensors").exists()
    result = script.main([*run, "--resume"])
    results = script.main(
        f"{words}/both --method teacher aux_kd".split()
    )  # with the teacher beside it
    for folder, method in ((first, "teacher"), ("aux", "aux_kd")):
        steps = [entry["step"] for entry in read_log(tmp_path / folder) if "loss" in entry]
        assert steps == list(range(1, len(steps) + 1)) and len(steps) > 2
        pair = [
            path / "model.safetensors" for path in (tmp_path / folder, tmp_path / "both" / method)
        ]
        assert pair[0].read_bytes() == pair[1].read_bytes()
    assert result["wer"] == results["aux_kd"]["wer"] and "emission_delay" in result
    # The optimiser has the branches too, which move; the exported model has none.
    state = torch.load(tmp_path / "aux" / "last.pt", weights_only=True)
    n = sum(name.startswith("branches.") for name in state["model"])
    moments = list(state["optimizer"]["state"].values())
    assert n > 0 and all(moment["exp_avg"].any() for moment in moments[-n:])
    assert not any(name.startswith("branches") for name in load_weights(pair[0]))
    (config,) = read_configs("streaming_aux_kd", [*run, "--teacher", str(first)])
    utterances = trainable(read_corpus(config, CPU).train, config.training.max_seconds)

    def find_teacher(find=script.find_teacher, **changes):
        return find(options.with_values(config, **changes), utterances, CPU)

    teacher = find_teacher(kd_weight=2.0, chunk_ms=80, left_ms=80, methods=("token_kd",))
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    trained = teacher.state_dict()
    untrained = find_teacher(untrained_teacher.find_untrained).state_dict()
    different = [n for n, x in untrained.items() if not torch.equal(x, trained[n])]
    assert different and all(name.startswith("encoder.") for name in different)
    others = dict(size="demo", lr=1e-3, epochs=2, seed=2, data=str(tmp_path), units=50)
    for name, value in others.items():
        message = rf"was trained otherwise \(--{name} .*give another --teacher"
        with pytest.raises(UserError, match=message):
            find_teacher(**{name: value})
    with pytest.raises(UserError, match=r"trained otherwise \(--method aux_kd -> teacher"):
        find_teacher(teacher=str(tmp_path / "aux"))
    message = "--teacher mistyped holds no run: give the folder of a run of teacher"
    with pytest.raises(UserError, match=message):
        find_teacher(teacher="mistyped")
    late = f"{words}/late --method token_kd --teacher {first} --max-steps 1".split()
    script.main(late)
    pieces = [(tmp_path / folder / "tokenizer.model").read_bytes() for folder in (first, "late")]
    assert pieces[0] == pieces[1]
    write_data(data, corpus.train[4:10], corpus.dev[:1], corpus.dev[1:2])
    with pytest.raises(
        UserError, match="the teacher in .* was trained on other utterances than --data now has"
    ):
        script.main([*late[:-1], "2", "--out", str(tmp_path / "later")])


@pytest.mark.parametrize("options, message", [
    ("--chunk-ms 100", "--chunk-ms is a multiple of 40"), ("--left-ms 200", "--left-ms of --chunk-ms"),
    ("--kd-every 3", "--kd-every 3 is more than the 2 layers"),
])  # fmt: skip
def test_values_that_make_no_sense(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main(f"--preset smoke --out {tmp_path / 'x'} {options}".split())
    assert message in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_sizes():
    for size, millions in (("S", 14), ("M", 32)):
        total = script.main(
            ["--preset", "full", "--size", size, "--method", "aux_kd", "--summary"]
        )["total"]
        assert total == pytest.approx(1e6 * millions, rel=0.05)
