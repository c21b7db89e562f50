"""multirep_kd.py: its equations in plain Python, its rows, and what its teachers read and answer."""

import functools
import itertools
import math
import operator
import random
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import AUGMENTED, SMALL, SMALL_CONFORMER, Script, loud, read_configs
from test_pretrained import VOCABULARY, bert, save, sentence_bert
from test_rnnt import alignments

import multirep_kd as script
from common import bert as masked_lm
from common.errors import UserError
from common.figures import read_log
from common.running import variants
from common.running.batches import MicroBatch, loader
from common.running.corpora import Utterance
from common.running.process import Place, open_folder
from common.text import Characters
from multirep_kd import Teacher, compute_losses, padded_states, remember, rnnt, states_of
from variants.multirep_kd import (
    cosine_distance,
    future_context,
    l2_distance,
    masked_states,
    normed_states,
    past_context,
    shuffled_teacher,
    soft_labels,
    token_embeddings,
    untrained_teacher,
)

ENTRY = Script(
    methods=("rnnt", "multirep_kd"),
    teacher="--teachers",
    small=f"{SMALL} {SMALL_CONFORMER} --head-dim 16 --predictor-dim 16 --joint-dim 16 --context 20 --teacher-layers random "
    "--n-layers 1",
    random=f"{AUGMENTED} --noise 0.5",
    exported={"frontend", "encoder", "predictor", "joint"},
    trained={"recogniser", "heads"},
    files={"lattice.png", "distances.png"},
    report={"teacher_seconds"},
    make_talk=loud,
)


CPU = Place(0, 1, torch.device("cpu"))
BF16 = CPU._replace(dtype=torch.bfloat16)
TINY = "--preset smoke --dim 32 --heads 2 --ff-dim 64 --channels 4 --head-dim 16 --predictor-dim 16 --joint-dim 16"

# Four utterances of a session, not listed in the order in which they began, and one of another session.
SAID = [
    ("c", "the night", 5.0),
    ("a", "the flour", 0.0),
    ("b", "our knight", 2.0),
    ("d", "flour", 9.0),
]
CONVERSATION = [Utterance(name, "", text, 1.0, offset, session="s") for name, text, offset in SAID]
CONVERSATION.append(Utterance("x", "", "night", 1.0, session="t"))


def teach(config: script.Config, utterances: list[Utterance] = CONVERSATION) -> Teacher:
    return script.build_teachers(config, utterances, CPU)[0]


def answering(config: script.Config, utterances: list[Utterance] = CONVERSATION) -> Teacher:
    """As the variant soft_labels has it: a teacher with its head."""
    with variants.replaced("multirep_kd", {"load_teacher": soft_labels.load_with_head}):
        return teach(config, utterances)


@pytest.fixture(scope="session")
def read_config(tmp_path_factory):
    """A configuration from words of the command line, with a BERT of two layers and random weights as its teacher."""
    folder = save(tmp_path_factory.mktemp("bert"), bert(max_position_embeddings=128))

    def read(row: str, **changes) -> script.Config:
        words = f"{TINY} --teachers {folder} --method {row}".split()
        (config,) = read_configs("multirep_kd", words)
        return replace(config, **changes)

    return read


@pytest.fixture
def small(read_config, corpus):
    """A tiny model, a teacher, and a batch of two short transcripts."""
    torch.manual_seed(0)
    config = read_config("multirep_kd")
    tokenizer = Characters.build(u.text for u in corpus.train)
    utterances = [replace(u, text=" ".join(u.text.split()[:2])) for u in corpus.train[:2]]
    teachers = [teach(config, utterances)]
    models = script.build_models(config, tokenizer.size, [(2, 16)], tokenizer).eval()
    fits = partial(script.fits, config.encoder.subsampling)
    (batch,) = loader([MicroBatch(utterances)], config, tokenizer.encode, fits)
    return SimpleNamespace(**locals())


@pytest.fixture
def lattice(small):
    """A function that compares the transducer of the small model, in double, with an enumeration of alignments."""
    recogniser, target = small.models["recogniser"].double(), small.batch.targets[:1]
    h, _ = recogniser(small.batch.waves.double(), small.batch.samples)
    g, joint, labels = recogniser.predictor.all_states(target), recogniser.joint, target[0].tolist()
    log_probs = joint(joint.encode(h[:1])[:, :, None], joint.predict(g)[:, None]).log_softmax(-1)[
        0
    ]  # (T, U+1, V)

    def compare(T: int, U: int) -> tuple:
        """Loss and gamma of the first T frames and U labels; {alignment: its probability} for all of them."""
        networks = joint, joint.encode(h[:1, :T]), joint.predict(g[:, : U + 1])
        loss, gamma = rnnt.transducer_loss(
            *networks, target[:, :U], torch.tensor([T]), torch.tensor([U])
        )

        def steps(path):
            return (log_probs[t, u, labels[u] if is_label else 0].item() for t, u, is_label in path)

        return (
            loss.item(),
            gamma[0],
            {tuple(path): math.exp(sum(steps(path))) for path in alignments(T, U)},
        )

    return compare


def test_the_equation_map_names_what_exists():
    rows = re.findall(r" {2,}(\S+) {2,}(test_\w+)$", script.__doc__, re.M)
    assert len(rows) == 9
    assert all(
        callable(operator.attrgetter(function)(script)) and callable(globals()[test])
        for function, test in rows
    )


def test_rnnt_l(lattice):
    for T, U in (
        (1, 2),
        (4, 3),
        (5, 0),
    ):  # the first frames and labels, so that all alignments can be listed
        loss, _, paths = lattice(T, U)
        assert loss == pytest.approx(-math.log(sum(paths.values())), abs=1e-9)


def test_gamma(lattice):
    _, gamma, paths = lattice(4, 3)
    for t, u in itertools.product(range(4), range(3)):
        share = sum(p for path, p in paths.items() if (t, u, True) in path) / sum(paths.values())
        assert gamma[t, u].item() == pytest.approx(share, abs=1e-9)
    assert torch.allclose(gamma.sum(0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-9)


def test_c():
    torch.manual_seed(0)
    gamma, h, g = torch.rand(2, 5, 3), torch.randn(2, 5, 4), torch.randn(2, 4, 2)
    c = script.label_features(gamma, h, g)
    assert c.shape == (2, 3, 6)
    for b, u in itertools.product(range(2), range(3)):
        acoustic = [
            sum(gamma[b, t, u].item() * h[b, t, d].item() for t in range(5)) for d in range(4)
        ]
        assert c[b, u].tolist() == pytest.approx([*acoustic, *g[b, u].tolist()], abs=1e-5)


def test_s():
    c = torch.arange(12.0).reshape(2, 3, 2)
    found = script.pool_spans(c, [np.array([(0, 1), (1, 3)]), np.array([(0, 3)])])
    assert found.tolist() == [[[0, 1], [3, 4]], [[8, 9], [0, 0]]]
    assert script.pool_spans(c, [np.zeros((0, 2), int)] * 2).shape == (2, 0, 2)


def test_layers():
    pick = lambda strategy, k, depth: script.choose_layers(strategy, k, depth, random.Random(1))  # noqa: E731
    assert pick("last", 2, 12) == [11, 12] and pick("first", 3, 12) == [1, 2, 3]
    assert [pick("uniform", k, 12) for k in (1, 2, 3, 4)] == [
        [12],
        [6, 12],
        [4, 8, 12],
        [3, 6, 9, 12],
    ]
    assert pick("uniform", 3, 8) == [3, 5, 8] and pick("uniform", 8, 8) == pick(
        "random", 8, 8
    ) == list(range(1, 9))
    drawn = [script.choose_layers("random", 2, 4, random.Random(i)) for i in range(200)]
    assert {tuple(layers) for layers in drawn} == set(
        itertools.combinations((1, 2, 3, 4), 2)
    )  # ascending
    for strategy in ("last", "first", "uniform", "random"):
        with pytest.raises(UserError, match="--n-layers 3 is more than the 2 layers"):
            pick(strategy, 3, 2)


def mean_of_powers(a: list[float], b: list[float], power: int) -> float:
    return sum(abs(x - y) ** power for x, y in zip(a, b, strict=True)) / len(a)


def one_minus_cosine(a: list[float], b: list[float]) -> float:
    dot = lambda x, y: sum(map(operator.mul, x, y))  # noqa: E731
    return 1 - dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


DISTANCES = {  # of the script and of two variants: the function, and the same in plain Python
    "l1": (script.distance, partial(mean_of_powers, power=1)),
    "l2": (l2_distance.squared, partial(mean_of_powers, power=2)),
    "cosine": (cosine_distance.by_cosine, one_minus_cosine),
}


@pytest.mark.parametrize("kind", DISTANCES)
def test_distance(kind):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    function, plain = DISTANCES[kind]
    found = function(student, teacher)
    assert found.shape == (2, 3)
    for b, i in itertools.product(range(2), range(3)):
        expected = plain(student[b, i].tolist(), teacher[b, i].tolist())
        assert found[b, i].item() == pytest.approx(expected, rel=1e-5)


def test_kd(small):
    """Token by token, head by head; what is padded counts nothing."""
    torch.manual_seed(0)
    (teacher,) = small.teachers
    names = [u.id for u in small.utterances]
    sizes = [len(teacher.tokens[name].ids) for name in names]
    assert sizes[0] != sizes[1]
    c = torch.randn(2, small.batch.targets.shape[1], 32 + 16)
    found = script.representation_losses(small.models, c, small.teachers, small.batch)
    assert list(found) == [f"{teacher.name} 1", f"{teacher.name} 2"]
    for k, (name, loss) in enumerate(found.items()):
        head = small.models["heads"][f"0-{name.split()[-1]}"]
        expected = 0.0
        for b, utterance in enumerate(names):
            e = states_of(teacher, [utterance], 0)[0][:, k]  # (I, E)
            for i, (start, end) in enumerate(teacher.tokens[utterance].spans):
                guess = head(c[b, start:end].mean(0))
                expected += mean_of_powers(guess.tolist(), e[i].tolist(), power=1)
        assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_soft_label_loss():
    torch.manual_seed(0)
    logits, q, total = torch.randn(2, 3, 4), torch.rand(2, 3, 4), 0.0
    q[..., 0] = q[1, 2] = 0.0
    for b, u in itertools.product(range(2), range(3)):
        norm = sum(math.exp(x) for x in logits[b, u, 1:].tolist())
        total -= sum(
            q[b, u, v].item() * math.log(math.exp(logits[b, u, v]) / norm) for v in (1, 2, 3)
        )
    assert soft_labels.soft_label_loss(logits, q).item() == pytest.approx(total, rel=1e-5)


def test_soft_labels(read_config):
    """Letter by letter from the masked piece's distribution, looking through the whole vocabulary."""
    utterances = [
        *CONVERSATION,
        Utterance("odd", "", "don't 'tis the boys' zürich", 1.0, session="u"),
    ]
    teacher = answering(read_config("multirep_kd --context 4 --context-mask 0"), utterances)
    labels = Characters.build(u.text for u in utterances)
    pieces = teacher.lm.pieces
    seen = 0
    answers = soft_labels.soft_labels_of(teacher, [u.id for u in utterances], 0, labels)
    for utterance, q in zip(utterances, answers, strict=True):
        text = utterance.text
        ids, spans = teacher.tokens[utterance.id]
        expected = torch.zeros(len(text), labels.size)
        read, begin = teacher.read(utterance.id, 0)
        for i, (start, end) in enumerate(spans.tolist()):
            masked = torch.tensor([[*read[: begin + i], teacher.lm.mask, *read[begin + i + 1 :]]])
            p = teacher.lm.model(masked).logits[0, begin + i].softmax(-1).tolist()
            positions = range(start, end + (text[end : end + 1] == " "))
            for u, (v, piece) in itertools.product(positions, enumerate(pieces)):
                word = piece.removeprefix("##") + " "
                alike = (
                    piece.startswith("##") == pieces[ids[i]].startswith("##") and piece[0] != "["
                )
                if alike and word.startswith(text[start:u]) and u - start < len(word):
                    expected[u, labels.ids.get(word[u - start], 0)] += p[v]
        expected[:, 0] = 0.0  # letters that the recogniser does not have
        expected /= expected.sum(-1, keepdim=True).clamp(min=1e-30)
        assert q.shape == expected.shape and torch.allclose(q, expected, atol=1e-5)
        seen += (q.sum(-1) > 0.5).sum().item()
    assert seen > 0.8 * sum(len(u.text) for u in utterances)


def test_loss(small):
    """The parts put together, and whom the distance teaches. In bf16 loss and gradient are near, and losses fp32."""
    losses, gradients = [], []
    for lam, place in ((0.0, CPU), (1.0, BF16), (1.0, CPU), (2.0, CPU)):
        small.models.zero_grad()
        loss, parts = compute_losses(small.models, small.batch, small.teachers, lam, place)
        loss.backward()
        assert {x.dtype for x in (loss, parts["rnnt"], *parts["kd"].values())} == {torch.float32}
        losses.append(loss.item())
        gradients.append(
            {name: p.grad.clone() for name, p in small.models["recogniser"].named_parameters()}
        )
    (none, near, one, two), name, distances = (
        losses,
        small.teachers[0].name,
        [x.item() for x in parts["kd"].values()],
    )
    assert list(parts["kd"]) == [f"{name} 1", f"{name} 2"] and parts["rnnt"].item() == none
    assert [one - none, two - none] == pytest.approx([sum(distances) / 2, sum(distances)], rel=1e-4)
    alone, only = compute_losses(small.models, small.batch, [], 1.0, CPU)
    assert alone.item() == none and list(only) == ["rnnt"]
    changed = {
        name.split(".")[0]
        for name, g in gradients[0].items()
        if not torch.equal(g, gradients[2][name])
    }
    assert changed == {
        "encoder",
        "predictor",
    }  # the joint network is only reached through gamma, which is detached
    assert all(p.grad.any() for p in small.models["heads"].parameters())
    assert all(
        p.grad is None and not p.requires_grad for p in small.teachers[0].lm.model.parameters()
    )
    half, exact = (gradient["encoder.norm.weight"] for gradient in gradients[1:3])
    assert (
        near == pytest.approx(one, rel=0.02)
        and 0 < (half - exact).abs().max() < 0.1 * exact.abs().max()
    )


def test_the_loss_of_a_batch_is_that_of_its_utterances(small):
    """Whatever is padded: every part, utterance by utterance."""
    _, together = compute_losses(small.models, small.batch, small.teachers, 1.0, CPU)
    sums = {"rnnt": 0.0} | dict.fromkeys(together["kd"], 0.0)
    for utterance in small.utterances:
        plan = [MicroBatch([utterance])]
        (batch,) = loader(plan, small.config, small.tokenizer.encode, small.fits)
        _, parts = compute_losses(small.models, batch, small.teachers, 1.0, CPU)
        for name, part in (parts["kd"] | {"rnnt": parts["rnnt"]}).items():
            sums[name] += part.item()
    for name, part in (together["kd"] | {"rnnt": together["rnnt"]}).items():
        assert part.item() == pytest.approx(sums[name], rel=1e-4)


def test_every_character_is_in_one_piece(read_config, corpus):
    odd, long = (
        Utterance("odd", "", "don't 'tis boys' zürich", 1.0),
        Utterance("long", "", "the night " * 200, 1.0),
    )
    teacher = teach(
        read_config("multirep_kd --context 60"),
        [*corpus.train, odd, long, replace(long, id="beside")],
    )
    for utterance in [*corpus.train, odd]:
        covered = [
            j for start, end in teacher.tokens[utterance.id].spans for j in range(start, end)
        ]
        assert covered == [j for j, c in enumerate(utterance.text) if c != " "]
    ids, start = teacher.read("long", 0)
    assert len(ids) == teacher.longest + 2 == 128 and start == 1
    assert len(teacher.tokens["long"].spans) == len(teacher.tokens["long"].ids) == teacher.longest


def test_context_is_shared_between_past_and_future():
    take, past, future = script.take_context, list(range(100)), list(range(200, 300))
    assert take(past, future, 6) == ([97, 98, 99], [200, 201, 202])
    assert take(past, future, 5) == ([98, 99], [200, 201, 202])
    assert take(past, [1], 6) == (past[95:], [1])
    assert take([1], future, 4) == ([1], [200, 201, 202])
    assert take(past, future, 0) == take([], [], 9) == ([], [])
    assert past_context.take_past(past, future, 3) == ([97, 98, 99], [])
    assert future_context.take_future(past, future, 3) == ([], [200, 201, 202])


def test_what_a_teacher_reads(read_config):
    @functools.cache
    def teacher_with(options: str) -> Teacher:
        return teach(read_config(f"multirep_kd {options}"))

    def read(name: str, options: str, epoch: int = 0) -> list[int]:
        teacher = teacher_with(options)
        found, start = teacher.read(name, epoch)
        assert (
            found == [teacher.lm.cls, *found[1:-1], teacher.lm.sep]
            and found[start:][: len(ids[name])] == ids[name]
        )
        return found[1:-1]

    teacher = teacher_with("")
    ids = {name: tokens.ids.tolist() for name, tokens in teacher.tokens.items()}
    whole, mask = "--context 60 --context-mask 0", VOCABULARY.index("[MASK]")
    assert read("b", "") == ids["b"] and read("x", whole) == ids["x"]
    assert (
        read("b", whole) == ids["a"] + ids["b"] + ids["c"] + ids["d"]
    )  # in the order of their beginnings
    assert read("b", "--context 2 --context-mask 0") == ids["a"][-1:] + ids["b"] + ids["c"][:1]
    masked = [mask] * len(ids["a"]) + ids["b"] + [mask] * len(ids["c"] + ids["d"])
    assert read("b", "--context 60 --context-mask 1") == masked
    drawn = [read("b", "--context 60 --context-mask 0.5", epoch) for epoch in [*range(9), 0]]
    assert len(set(map(tuple, drawn))) > 3 and drawn[0] == drawn[-1]


def test_states_stand_at_the_right_tokens(read_config):
    """Whatever the padding. They are fp32 to the bit under autocast, the normed ones too."""
    teacher = teach(read_config("multirep_kd --context 8 --context-mask 0"))
    together = padded_states(teacher, "abcdx", 0)
    for b, name in enumerate("abcdx"):
        ids, start = teacher.read(name, 0)
        plain = teacher.lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1:]
        end = start + len(teacher.tokens[name].ids)
        alone = padded_states(teacher, [name], 0)
        for k in range(2):
            assert torch.allclose(alone[k][0], plain[k][0, start:end], atol=1e-4)
            assert torch.allclose(together[k][b, : end - start], alone[k][0], atol=1e-4)
    normed = normed_states.normed(teacher, ["a"], 0)
    for e in normed:
        assert e.mean(-1).abs().max() < 1e-5
        assert (e.std(-1, correction=0) - 1).abs().max() < 1e-2
    with BF16.autocast():
        again = [*padded_states(teacher, "abcdx", 0), *normed_states.normed(teacher, ["a"], 0)]
    for x, y in zip(again, [*together, *normed], strict=True):
        assert x.dtype == torch.float32 and torch.equal(x, y)


def test_a_shuffled_teacher(read_config):
    """Token i gets e_{i mod I'} of the partner; whoever is silent has none."""
    teacher = teach(read_config("multirep_kd"), [*CONVERSATION, Utterance("silent", "", "", 1.0)])
    partners = shuffled_teacher.partners_of(teacher)
    assert sorted(partners) == sorted(partners.values()) == [*"abcdx"]
    assert all(a != b for a, b in partners.items())
    for name, found in zip("abcdx", shuffled_teacher.shuffled(teacher, "abcdx", 0)[1], strict=True):
        (states,) = states_of(teacher, [partners[name]], 0)  # (I', 2, E)
        for i in range(len(teacher.tokens[name].ids)):
            assert torch.allclose(found[i], states[i % len(states), 1], atol=1e-4)


@pytest.mark.parametrize("options", ["", "--context 8 --context-mask 0"])
def test_what_is_kept_is_what_would_be_asked(read_config, options):
    """The same in whatever order, to the bit, under autocast too."""
    utterances = [
        Utterance(str(i), "", "the " * (1 + i % 30), 1.0) for i in range(70, 0, -1)
    ] + CONVERSATION
    config = read_config(f"multirep_kd {options}")
    names = [u.id for u in utterances]
    online, once, again = (teach(config, utterances) for _ in range(3))
    remember(once, names, CPU)
    with BF16.autocast():
        remember(again, names[::-1], CPU)
    assert set(once.known) == set(names)
    assert all(torch.equal(once.known[n], again.known[n]) for n in names)
    for a, b in zip(states_of(online, names, 3), states_of(once, names, 3), strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    "options", ["--context 8 --context-mask 0.1", "--teacher-layers random", ""]
)
def test_nothing_is_kept_that_is_drawn_or_too_large(read_config, options):
    teacher = teach(read_config(f"multirep_kd {options}"))
    if not options:
        teacher.width = 10**9  # more than 2 GB
    remember(teacher, [*"abcdx"], CPU)
    assert not teacher.known


class Long(str):
    """A text that claims to be long."""

    def __len__(self) -> int:
        return 10**9


def test_masked_states_know_the_words_around_and_not_the_word(read_config):
    """One token at a time; another one in its place changes every state but its own."""
    teacher = teach(read_config("multirep_kd --n-layers 2"))
    (before,) = masked_states.masked_states_of(teacher, ["x"], 0)  # (I, n, E)
    ids = teacher.tokens["x"].ids
    assert len(ids) > 1 and before.shape == (len(ids), 2, teacher.width)
    row, begin = teacher.read("x", 0)
    for i, state in enumerate(before):
        masked = [*row[: begin + i], teacher.lm.mask, *row[begin + i + 1 :]]
        expected = teacher.lm.layers([masked], teacher.layers(0))[0, begin + i]
        assert torch.allclose(state, expected, atol=1e-5)
    ids[0] = teacher.lm.unk
    (after,) = masked_states.masked_states_of(teacher, ["x"], 0)
    assert torch.allclose(before[0], after[0], atol=1e-6)
    assert not torch.allclose(before[1], after[1], atol=1e-3)
    nothing = teach(read_config("multirep_kd"), [Utterance("n", "", "", 1.0)])
    assert masked_states.masked_states_of(nothing, ["n"], 0)[0].shape[0] == 0


def test_masked_states_are_asked_once(read_config, monkeypatch):
    """In context, and more rows than BERT reads at once; what is kept is what would be asked."""
    said = [Utterance(str(i), "", "the " * (1 + i % 15), 1.0, i, session="s") for i in range(70)]
    names = [utterance.id for utterance in said]
    teacher = teach(read_config("multirep_kd --context 4 --context-mask 0"), said)
    expected = []
    for name in names:
        row, first = teacher.read(name, 0)
        places = range(first, first + len(teacher.tokens[name].ids))
        rows = [[*row[:i], teacher.lm.mask, *row[i + 1 :]] for i in places]
        expected.append(teacher.lm.layers(rows, [1, 2])[range(len(rows)), places])
    assert sum(map(len, expected)) > 2 * masked_states.ROWS
    with variants.replaced("multirep_kd", {"states_of": masked_states.masked_states_of}):
        asked = script.states_of(teacher, names, 0)
        remember(teacher, names, CPU)
        monkeypatch.setattr(masked_lm.MaskedLM, "layers", None)  # whoever asks again fails
        kept = script.states_of(teacher, names, 3)
    for by_hand, *found in zip(expected, asked, kept, strict=True):
        assert all(torch.allclose(states, by_hand, atol=1e-4) for states in found)


def test_token_embeddings_know_the_token_and_its_place_alone(read_config):
    replacements = {
        "choose_layers": token_embeddings.embedding_layer,
        "build_heads": token_embeddings.build_heads,
    }
    with variants.replaced("multirep_kd", replacements):
        config = read_config("multirep_kd --n-layers 2 --teacher-layers random")
        teacher = teach(config)
        (before,) = states_of(teacher, ["x"], 0)  # (I, 1, E)
        teacher.tokens["x"].ids[0] = teacher.lm.unk
        (after,) = states_of(teacher, ["x"], 0)
        assert list(script.build_heads(config, [(2, 16)])) == ["0-0"]
    assert before.shape == (len(teacher.tokens["x"].ids), 1, teacher.width)
    assert torch.equal(before[1:], after[1:]) and not torch.allclose(before[0], after[0])


def test_soft_labels_are_asked_once(read_config, monkeypatch):
    """Where nothing is drawn, and where they fit; their batches depend on the utterances alone."""
    labels = Characters.build(u.text for u in CONVERSATION)
    teacher, again, drawn, large = (answering(read_config("multirep_kd")) for _ in range(4))
    soft_labels.remember_soft_labels(teacher, [*"abcdx"], CPU)
    soft_labels.remember_soft_labels(again, [*"xdcba"], CPU)
    assert all(torch.equal(q, again.known[name]) for name, q in teacher.known.items())
    drawn.config = read_config("multirep_kd --context 8 --context-mask 0.1")
    large.transcripts = dict.fromkeys("abcdx", Long("e"))
    for other in (drawn, large):
        soft_labels.remember_soft_labels(other, [*"abcdx"], CPU)
        assert not other.known
    asked = soft_labels.soft_labels_of(drawn, [*"abcdx"], 0, labels)
    assert [len(q) for q in asked] == [len(drawn.transcripts[name]) for name in "abcdx"]
    monkeypatch.setattr(masked_lm.MaskedLM, "logits", None)  # whoever asks again fails
    kept = soft_labels.soft_labels_of(teacher, [*"dcba"], 1, labels)
    assert all(q is teacher.known[name] for q, name in zip(kept, "dcba", strict=True))


def test_layers_and_masks_are_drawn_anew_every_epoch(read_config, small):
    config, drawn = (
        read_config(
            "multirep_kd --teacher-layers random --n-layers 1 --context 20 --context-mask 0.5"
        ),
        [],
    )
    teacher, models = (
        teach(config, small.utterances),
        script.build_models(config, small.tokenizer.size, [(2, 16)]),
    )
    for epoch in [*range(9), 0]:
        batch = small.batch._replace(plan=MicroBatch([], epoch))
        _, parts = compute_losses(models, batch, [teacher], 1.0, CPU)
        drawn += [(name, cost.item()) for name, cost in parts["kd"].items()]
    assert {name for name, _ in drawn} == {f"{teacher.name} 1", f"{teacher.name} 2"}
    assert len(drawn) == 10 and drawn[0] == drawn[-1] and len(set(drawn)) == 9
    assert sorted(models["heads"]) == ["0-1", "0-2"]


def test_an_untrained_teacher(read_config, monkeypatch):
    sums = [states_of(teach(read_config("multirep_kd")), ["a"], 0)[0].sum().item()]
    monkeypatch.setattr(script, "load_teacher", untrained_teacher.load_untrained)
    for seed in (1, 1, 2):
        teacher = teach(read_config(f"multirep_kd --seed {seed}"))
        sums.append(states_of(teacher, ["a"], 0)[0].sum().item())
    assert sums[1] == sums[2] and len(set(sums)) == 3


def trained(config: script.Config, corpus, out: Path) -> tuple[torch.Tensor, dict]:
    """All exported weights in a row, and the report of a training."""
    config = replace(config, out=str(out))
    open_folder(config, CPU)
    recogniser, report, _ = script.train(config, corpus, CPU)
    return torch.cat([x.flatten() for x in recogniser.state_dict().values()]), report


SOFT = {  # what the variant replaces
    "load_teacher": soft_labels.load_with_head,
    "representation_losses": soft_labels.soft_label_losses,
    "build_models": soft_labels.build_without_heads,
    "remember": soft_labels.remember_soft_labels,
}


def test_without_weight_a_row_is_the_baseline_to_the_bit(read_config, corpus, tmp_path):
    """lam 0: heads and teacher are there, the recogniser is as without; so it is with soft labels."""
    few = replace(corpus, train=corpus.train[:12], dev=corpus.dev[:1])
    options = "--max-steps 3 --update-seconds 6 --dropout 0.1 --clip 0.5 --ramp 0"
    baseline, _ = trained(read_config(f"rnnt {options}"), few, tmp_path / "rnnt")
    for weight, replacements, parts in ((0, None, 2), (1, None, 2), (0, SOFT, 1)):
        config = read_config(f"multirep_kd --kd-weight {weight} {options}")
        out = tmp_path / f"{weight}-{parts}"
        with variants.replaced("multirep_kd", replacements):
            exported, report = trained(config, few, out)
        assert torch.equal(exported, baseline) == (weight == 0)
        assert report["teacher_seconds"] > 0
        log = [entry["kd"] for entry in read_log(out) if "kd" in entry]
        assert len(log) == 3 and {len(kd) for kd in log} == {parts}
        assert all(min(kd.values()) > 0 for kd in log)


def test_a_teacher_without_head(read_config, corpus, root, tmp_path):
    """A folder of sentence-transformers teaches to the bit like the same BERT with its head; soft labels need one."""
    headless = str(sentence_bert(tmp_path / "headless"))
    whole = str(save(tmp_path / "whole", bert()))
    few = replace(corpus, train=corpus.train[:12], dev=corpus.dev[:1])
    weights = []
    for name in (headless, whole):
        config = read_config("multirep_kd --max-steps 2 --ramp 0", teachers=(name,))
        weights.append(trained(config, few, tmp_path / f"of-{Path(name).name}")[0])
    assert torch.equal(*weights)
    words = (
        f"{TINY} --method multirep_kd --root {root} --teachers {headless} --out {tmp_path / 'x'}"
    )
    with pytest.raises(
        UserError, match="^--teachers .*lacks weights .*saved with its head"
    ) as stop:
        soft_labels.main(words.split())
    assert "\n" not in str(stop.value)


def test_lam_rises(read_config):
    config = read_config("multirep_kd --kd-weight 2 --ramp 0.1")
    rising = [script.weight_at(step, 100, config) for step in (1, 5, 10, 100)]
    assert rising == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert script.weight_at(1, 100, replace(config, ramp=0.0)) == 2.0


def test_recogniser_and_heads_are_clipped_apart(read_config, corpus, tmp_path):
    config = read_config(f"multirep_kd --max-steps 1 --clip 0.01 --ramp 0 --out {tmp_path}")
    trained(config, replace(corpus, train=corpus.train[:4], dev=corpus.dev[:1]), tmp_path)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    squares = {"recogniser": 0.0, "heads": 0.0}
    parameters = [n for n in state["model"] if "frontend" not in n]
    moments = [s["exp_avg"] for s in state["optimizer"]["state"].values()]
    for name, moment in zip(parameters, moments, strict=True):
        squares[name.split(".")[0]] += moment.square().sum().item()
    for square in squares.values():  # a first moment is 0.1 of the clipped gradient
        assert math.sqrt(square) == pytest.approx(0.1 * 0.01, rel=1e-3)


@pytest.mark.parametrize("options, message", [
    ("--noise 2", "--noise must be a share"), ("--ramp -1", "--ramp must be a share"), ("--context -1", "at least 0"),
    ("--context-mask 2", "--context-mask must be a share"), ("--kd-weight -1", "--kd-weight must be at least 0"),
    ("--n-layers 0", "--n-layers must be at least 1"),
])  # fmt: skip
def test_values_that_make_no_sense(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(f"{TINY} --method rnnt --out {tmp_path / 'x'} {options}".split())
    assert (
        stop.value.code == 2
        and message in capsys.readouterr().err
        and not (tmp_path / "x").exists()
    )


def test_the_full_preset_has_71_million_parameters(capsys):
    assert script.main(["--preset", "full", "--summary"])["total"] == pytest.approx(71e6, rel=0.02)
    assert "in the heads, for training only" in capsys.readouterr().out
