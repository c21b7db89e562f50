"""interaed_kd.py: its equations in plain Python, its rows, and what its teacher is asked."""

import itertools
import math
import operator
import re
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from conftest import AUGMENTED, SMALL, SMALL_CONFORMER, Script
from test_ctc import enumerate_paths
from test_pretrained import bert, save
from torch import nn

import interaed_kd as script
from common.bert import SharedPieces
from common.running import command_line, options
from common.running.audio import read_audio
from common.running.batches import MicroBatch, make_batch
from common.running.corpora import Utterance
from common.running.pretrained import load_masked_lm
from common.running.process import Place, open_folder
from common.text import WordPiece
from interaed_kd import SoftLabel, compute_losses, ctc


def unlikely_blank(weights: dict) -> None:
    weights["ctc_head.bias"][0] -= 4


ENTRY = Script(
    methods=("ctc", "interaed_kd"),
    teacher="--teacher",
    small=f"{SMALL} {SMALL_CONFORMER} --decoder-ff-dim 64",
    random=AUGMENTED,
    exported={"frontend", "encoder", "ctc_head"},
    trained={"recogniser", "decoder"},
    files={"soft_label.png"},
    report={"teacher_seconds", "teacher_top1", "teacher_top_k"},
    make_talk=unlikely_blank,
)


CPU = Place(0, 1, torch.device("cpu"))
BF16 = CPU._replace(dtype=torch.bfloat16)
TINY = (
    "--preset smoke --dim 32 --heads 2 --ff-dim 64 --channels 4 --decoder-ff-dim 64 --temperature 3"
)


def read_config(method: str, more: str = "", **changes) -> script.Config:
    argv = f"{TINY} --method {method} {more}".split()
    (config,) = command_line.parse(script.PRESETS, script.__doc__, argv)
    return options.with_values(config, **changes)


def batch_of(
    waves, targets: list[list[int]], soft: list[SoftLabel]
) -> tuple[script.Batch, SoftLabel]:
    utterances = [Utterance(str(i), "", "", 1.0) for i in range(len(waves))]
    batch = make_batch(waves, targets, utterances, {}, 0, MicroBatch([]))
    return batch, script.pad_soft_labels({str(i): x for i, x in enumerate(soft)}, batch)


def one_hot(target: list[int]) -> SoftLabel:
    return SoftLabel(
        torch.tensor([[y, 3] for y in [*target, 0]]), torch.tensor([[1.0, 0.0]] * (len(target) + 1))
    )


TARGETS = [[1, 2], [2]]
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
HARD = [one_hot(target) for target in TARGETS]
SOFT = [
    SoftLabel(
        torch.tensor([[1, 3], [3, 2], [0, 1]]), torch.tensor([[0.8, 0.2], [0.6, 0.4], [1.0, 0.0]])
    ),
    SoftLabel(torch.tensor([[2, 1], [0, 1]]), torch.tensor([[0.7, 0.3], [1.0, 0.0]])),
]


@pytest.fixture
def small():
    """A tiny model of three layers and four labels, two utterances of 4 and 3 frames, what the model makes of them."""
    torch.manual_seed(0)
    config = read_config("interaed_kd", layers=3, taps=(1, 2))
    models = script.build_models(config, 4, WordPiece(["a", "b", "c"])).eval()
    recogniser, decoder, waves = (
        models["recogniser"],
        models["decoder"],
        [torch.randn(6500), torch.randn(5500)],
    )
    (batch, soft), (_, hard) = (batch_of(waves, TARGETS, labels) for labels in (SOFT, HARD))
    states, lengths = recogniser(batch.waves, batch.samples, (1, 2))
    log_probs, decoded = (
        [recogniser.log_probs(x) for x in states],
        decoder(states, lengths, batch.targets),
    )
    ctc_losses = [
        ctc.ctc_loss(lp, lengths, batch.targets, batch.target_lengths).sum() for lp in log_probs
    ]
    return SimpleNamespace(**locals())


def test_the_equation_map_names_what_exists():
    rows = re.findall(r" {2,}(\S+) {2,}(test_\w+)$", script.__doc__, re.M)
    assert len(rows) == 9 and all(
        operator.attrgetter(function)(script) and globals()[test] for function, test in rows
    )


def test_ctc_l(small):
    """CTC at every layer by enumerating all paths of a short utterance; without a decoder there is nothing else."""
    expected, lengths = 0.0, small.lengths.tolist()
    assert lengths == [4, 3]
    for i, (target, length) in enumerate(zip(TARGETS, lengths, strict=True)):
        first, second, last = (
            enumerate_paths(lp[i, :length].double(), target) for lp in small.log_probs
        )
        expected += (1 - 0.66) * last + 0.66 * (first + second) / 2
    only = nn.ModuleDict({"recogniser": small.recogniser})
    found, parts = compute_losses(
        only, small.batch, None, options.with_values(small.config, ctc_share=1.0), CPU
    )
    assert (
        found.item() == parts["ctc"].item() == pytest.approx(expected, rel=1e-5) and len(parts) == 1
    )


def cross_entropy_by_hand(log_probs: torch.Tensor, soft: list[SoftLabel], e: float) -> float:
    """The equation H_l(q), term by term."""
    total, V = 0.0, log_probs.shape[-1]
    for lp, (labels, probs) in zip(log_probs.tolist(), soft, strict=True):
        for i, pairs in enumerate(zip(labels.tolist(), probs.tolist(), strict=True)):
            q = [sum(p for v, p in zip(*pairs, strict=True) if v == label) for label in range(V)]
            total -= sum(((1 - e) * q[v] + e / V) * lp[i][v] for v in range(V))
    return total


def test_h(small):
    for e, (soft, labels) in itertools.product(
        (0.0, 0.1, 0.7), [(small.soft, SOFT), (small.hard, HARD)]
    ):
        found = script.smoothed_cross_entropy(small.decoded[0], soft, MASK, e)
        assert found.item() == pytest.approx(cross_entropy_by_hand(small.decoded[0], labels, e))


def losses_of(small, log_probs, soft) -> tuple[float, float]:
    """att_l and kd_l of the decoder's answer."""
    hard = script.hard_label(small.batch.targets)
    return tuple(
        script.smoothed_cross_entropy(log_probs, q, MASK, 0.1).item() for q in (hard, soft)
    )


def test_att_kd(small):
    """A teacher who is sure of the transcript teaches what the transcript does: kd_l == att_l."""
    for log_probs, (soft, same) in itertools.product(
        small.decoded, [(small.hard, True), (small.soft, False)]
    ):
        att, kd = losses_of(small, log_probs, soft)
        assert att > 0 and (kd == pytest.approx(att)) == same == (abs(kd - att) < 0.01)


def test_mix(small):
    att, kd = (cross_entropy_by_hand(small.decoded[1], labels, 0.1) for labels in (HARD, SOFT))
    assert losses_of(small, small.decoded[1], small.soft) == pytest.approx((att, kd))
    for a in (0.0, 0.1, 0.5, 1.0):
        assert script.mix_losses([att, 1.0], [kd, 3.0], a) == pytest.approx(
            [(1 - a) * att + a * kd, 1 + 2 * a]
        )


def test_weigh():
    for s in (0.0, 0.5, 0.66):
        assert script.weigh([3.0, 5.0, 7.0], s) == pytest.approx((1 - s) * 7 + s * (3 + 5) / 2)
        assert script.weigh([7.0], s) == 7  # no taps


def test_q():
    """The logits, softened; a row sums to one; a hard label, whose other logits are -inf, stays hard."""
    inf = math.inf
    probs = script.soften(torch.tensor([[3.0, 1.0], [4.0, 1.0], [0.0, -inf]]), tau=3.0)
    unnormalised = [[math.exp(z / 3) for z in row] for row in [(3, 1), (4, 1), (0, -inf)]]
    assert probs.tolist() == [pytest.approx([q / sum(row) for q in row]) for row in unnormalised]
    assert probs[2].tolist() == [1, 0]


def test_loss(small):
    """compute_losses puts the parts together as the formula says, for every method, and returns them for the log."""
    config, models, batch, soft, c = (
        small.config,
        small.models,
        small.batch,
        small.soft,
        small.ctc_losses,
    )
    hard = script.hard_label(batch.targets)
    att = [script.smoothed_cross_entropy(lp, hard, MASK, 0.1) for lp in small.decoded]
    kd = [script.smoothed_cross_entropy(lp, soft, MASK, 0.1) for lp in small.decoded]
    for method, (lam, w, u, a) in script.METHODS.items():
        m = [(1 - a) * x + a * taught for x, taught in zip(att, kd, strict=True)]
        expected = lam * ((1 - w) * c[2] + w * (c[0] + c[1]) / 2) + (1 - lam) * (
            (1 - u) * m[2] + u * (m[0] + m[1]) / 2
        )
        some = models if lam < 1 else nn.ModuleDict({"recogniser": small.recogniser})
        row = options.with_values(config, methods=(method,), ctc_share=None)
        found, parts = compute_losses(some, batch, soft if a else None, row, CPU)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5), method
        assert set(parts) == {"ctc"} | ({"att"} if lam < 1 else set()) | ({"kd"} if a else set())
        together = (1 - a) * parts.get("att", 0) + a * parts.get("kd", 0)
        assert found.item() == pytest.approx(
            (lam * parts["ctc"] + (1 - lam) * together).item(), rel=1e-5
        )
    one, half = (compute_losses(models, batch, soft, config, place)[0] for place in (CPU, BF16))
    assert (
        half.dtype == torch.float32
        and half.item() == pytest.approx(one.item(), rel=0.02)
        and half != one
    )


def test_a_taps_loss_teaches_the_layers_at_and_below_it(small):
    """The gradient of CTC's and of the decoder's term at tap 1: none above block 1, some in it and below."""
    for term in (
        small.ctc_losses[0],
        script.smoothed_cross_entropy(small.decoded[0], small.soft, MASK, 0.1),
    ):
        small.models.zero_grad()
        term.backward(retain_graph=True)
        first, *above = small.recogniser.encoder.blocks
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in first.parameters())
        assert small.recogniser.encoder.subsampling.linear.weight.grad.abs().max() > 0
        assert not any(
            p.grad is not None and p.grad.any() for block in above for p in block.parameters()
        )


def test_the_decoder_runs_once_on_what_the_method_reads(small):
    """Its batch is (taps + 1) B for interaed_kd, and B where no tap has a decoder's loss."""
    sizes = []
    small.decoder.blocks[0].register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0]))
    )
    for method in ("interaed_kd", "aed_kd"):
        row = options.with_values(small.config, methods=(method,))
        compute_losses(small.models, small.batch, small.soft, row, CPU)
    assert sizes == [6, 2]


def test_the_decoder_sees_neither_the_future_nor_padding(small):
    state, lengths = torch.randn(2, 5, 32), torch.tensor([5, 3])
    one = small.decoder([state], lengths, torch.tensor([[1, 2, 3], [2, 1, 0]]))[0]
    state[1, 3:] = 7.0
    other = small.decoder([state], lengths, torch.tensor([[1, 2, 1], [2, 3, 3]]))[0]
    torch.testing.assert_close(one[0, :3], other[0, :3])
    torch.testing.assert_close(one[1, :2], other[1, :2])
    assert (one[1, 2] - other[1, 2]).abs().max() > 1e-3


def test_every_decoder_block_begins_with_values_of_its_own():
    """As torch initialises a block, each of them; torch's own stack copies its first."""
    torch.manual_seed(0)
    blocks = script.AttentionDecoder(
        read_config("aed", decoder_layers=3, dim=64, decoder_ff_dim=256), 4
    ).blocks
    for name, expected in nn.TransformerDecoderLayer(64, 2, 256).named_parameters():
        if expected.dim() > 1:
            weights = [block.get_parameter(name) for block in blocks]
            assert [w.std().item() for w in weights] == pytest.approx(
                [expected.std().item()] * 3, rel=0.05
            ), name
            assert not any(torch.equal(a, b) for a, b in itertools.combinations(weights, 2)), name


def test_alone_is_as_in_a_padded_batch(small, corpus):
    """Loss, transcripts and times do not depend on an utterance's neighbours."""
    recogniser, searches = small.recogniser, [{}, dict(beam=5, lm=None, lm_weight=0.0, bonus=0.0)]
    recogniser.ctc_head.requires_grad_(
        False
    ).weight *= 5  # an untrained model would write blanks only
    waves, targets = (
        [read_audio(u.audio) for u in corpus.train[:4]],
        [[1, 2, 1], [2], [1, 1], [2, 1]],
    )
    labels = [SoftLabel(x.labels, x.probs * 0.7 + 0.15) for x in map(one_hot, targets)]
    together, soft = batch_of(waves, targets, labels)
    greedy, beam = (recogniser.transcribe(together, CPU, **search) for search in searches)
    assert all(transcript.text for transcript in greedy) and greedy != beam
    alone_loss = 0.0
    for wave, target, label, *found in zip(waves, targets, labels, greedy, beam, strict=True):
        alone, its_soft = batch_of([wave], [target], [label])
        alone_loss += compute_losses(small.models, alone, its_soft, small.config, CPU)[0].item()
        assert [recogniser.transcribe(alone, CPU, **search) for search in searches] == [
            [x] for x in found
        ]
        assert all(word.start < word.end <= len(wave) / 16000 for x in found for word in x.words)
    assert compute_losses(small.models, together, soft, small.config, CPU)[
        0
    ].item() == pytest.approx(alone_loss, rel=1e-5)


def test_ctc_share_changes_lam_beside_a_decoder():
    assert script.weights_of(read_config("ctc")) == (
        1,
        0,
        0,
        0,
    )  # the demo preset's lam is for methods with a decoder
    assert script.weights_of(read_config("aed_kd", "--ctc-share 0.3")) == (0.3, 0, 0, 0.5)
    assert script.weights_of(read_config("interaed_kd", "--preset full")).lam == 0.3
    assert script.taps_of(read_config("aed")) == () != script.taps_of(read_config("interctc"))


def test_a_method_with_a_teacher_learns_from_it(small):
    """Its loss changes with BERT's answers."""
    for method in ("aed_kd", "interaed_kd"):
        row = options.with_values(small.config, methods=(method,))
        losses = {
            compute_losses(small.models, small.batch, x, row, CPU)[0].item()
            for x in (small.hard, small.soft)
        }
        assert len(losses) == 2


def test_only_methods_with_a_teacher_ask_it(corpus, teacher, monkeypatch):
    monkeypatch.setattr(script, "soft_labels_of", Mock(side_effect=LookupError("asked")))
    monkeypatch.setattr(script, "build_models", Mock(side_effect=LookupError("not asked")))
    cases = dict.fromkeys(["aed_kd", "interaed_kd"], "asked")
    cases |= dict.fromkeys(["ctc", "aed", "interaed", "interaed_kd --ctc-share 1"], "not asked")
    for words, what in cases.items():
        with pytest.raises(LookupError, match=f"^{what}"):
            script.train(read_config(words, teacher=teacher[0].model.name_or_path), corpus, CPU)


def test_every_row_exports_the_same_model_from_the_same_start():
    """The recogniser of a row with a decoder has the same parameters, and the same first values, as that of ctc."""
    exported = []
    for method, weights in script.METHODS.items():
        torch.manual_seed(3)
        models = script.build_models(read_config(method), 50)
        assert ("decoder" in models) == (weights.lam < 1)
        exported.append(models["recogniser"].state_dict())
    for state in exported:
        assert state.keys() == exported[0].keys() and all(
            torch.equal(x, exported[0][name]) for name, x in state.items()
        )


@pytest.mark.parametrize("method, options, message", [
    ("interctc", "--layers 4 --taps 4", "--taps are layers from 1 to 3, below the last, each once"),
    ("ctc interaed", "--layers 4 --taps 2 2", "--taps are layers from 1 to 3, below the last, each once"),
    ("aed", "--smoothing 1", "--smoothing must be below 1"), ("aed", "--ctc-share 1.5", "must be a share"),
    ("aed", "--ctc-share -1", "must be a share"), ("aed", "--top-k 0", "--top-k must be at least 1"),
])  # fmt: skip
def test_values_that_make_no_sense(method, options, message, tmp_path, capsys):
    """Refused before anything begins, also where only a later row would meet them."""
    with pytest.raises(SystemExit) as stop:
        script.main(f"{TINY} --method {method} --out {tmp_path / 'x'} {options}".split())
    assert (
        stop.value.code == 2
        and message in capsys.readouterr().err
        and not (tmp_path / "x").exists()
    )


def test_summary(capsys):
    parts = script.main(["--data", "librispeech", "--summary"])
    assert (
        parts["total"] == sum(n for name, n in parts.items() if name != "total")
        and 30e6 < parts["total"] < 36e6
    )
    assert (
        f"{parts['total']:,}" in (shown := capsys.readouterr().out)
        and "in the decoder, for training only" in shown
    )


# --------------------------------------------------------------------------------------------------------- teacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A BERT of random weights, a tokenizer with a part of its pieces (and one more, é), BERT's piece of each label."""
    lm = load_masked_lm(
        str(save(tmp_path_factory.mktemp("bert"), bert())), "--teacher", "unused", "cpu"
    )
    tokenizer = WordPiece.prune(lm.pieces, ["the baker's flour é", "boys' knight 'tis x"], 5)
    return lm, tokenizer, torch.tensor([-1, *tokenizer.ids_in(lm.pieces)])


TEXTS = ["the baker's flour", "boys' knight é", "'tis knight the", "é flour" + " the" * 40]


def test_z(teacher):
    """Batched, with the head at the mask only, against one full pass per token; special ids are never a label."""
    (lm, tokenizer, piece_of), utterances = (
        teacher,
        [Utterance(text, "", text, 1.0) for text in TEXTS],
    )
    shared = SharedPieces(tokenizer, lm)
    questions = script.questions_of(tokenizer, shared, utterances)
    pieces = {*piece_of.tolist()} - {-1}
    answers = script.label_tokens(shared, questions, len(pieces))
    for question, answer in zip(questions, answers, strict=True):
        rows = zip(question.labels, answer.labels.tolist(), answer.logits.tolist(), strict=True)
        for i, (y, labels, logits) in enumerate(rows, start=1):
            if (
                piece_of[y] < 0 or i >= lm.longest
            ):  # BERT lacks the piece, or does not read so far: a hard label
                assert labels[0] == y and logits[0] == 0 and set(logits[1:]) == {-math.inf}
                continue
            masked = [lm.mask if j == i else piece for j, piece in enumerate(question.ids)][
                : lm.longest
            ]
            z = lm.model(torch.tensor([masked])).logits[0, i].tolist()
            expected = {y if piece_of[y] == p else piece_of.tolist().index(p): z[p] for p in pieces}
            assert dict(zip(labels, logits, strict=True)) == pytest.approx(expected, abs=1e-5)
    two = script.label_tokens(shared, questions, 2)  # the two largest of them, in order
    for answer, fewer in zip(answers, two, strict=True):
        assert torch.equal(answer.logits.topk(2).values, fewer.logits)
    with BF16.autocast():  # fp32 all the same
        again = script.label_tokens(shared, questions, len(pieces))
    assert all(
        torch.equal(*pair)
        for x in zip(answers, again, strict=True)
        for pair in zip(*x, strict=True)
    )


def test_one_update(corpus, root, model, tmp_path):
    """With the demo's teacher by its name. Recogniser and decoder are clipped apart."""
    model("bert-a")
    config = read_config(
        "interaed_kd", "--max-steps 1 --clip 0.01", out=str(tmp_path), root=str(root)
    )
    open_folder(config, CPU)
    _, report, drawings = script.train(
        config, replace(corpus, train=corpus.train[:12], dev=corpus.dev[:2]), CPU
    )
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    names = [
        name for name in state["model"] if ".frontend." not in name
    ]  # the others are parameters, in order
    moments = dict(zip(names, state["optimizer"]["state"].values(), strict=True))
    parts = [
        [m["exp_avg"] for name, m in moments.items() if name.startswith(part)]
        for part in ("recogniser", "decoder")
    ]
    norms = [math.hypot(*(moment.norm().item() for moment in part)) for part in parts]
    assert norms == pytest.approx(
        [0.1 * 0.01] * 2, rel=1e-3
    )  # a first moment is 0.1 of the clipped gradient
    assert (
        0 < report["teacher_top1"] <= report["teacher_top_k"] <= 1 and report["teacher_seconds"] > 0
    )
    assert set(drawings) == {"soft_label.png"}
