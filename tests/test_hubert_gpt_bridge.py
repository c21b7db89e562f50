"""hubert_gpt_bridge.py: its equations in plain Python, lengths, freezing, adapters, and the published layout."""

import json
import operator
import re
import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import soundfile
import torch
from conftest import REPOSITORY, SMALL, Script, read_configs, write_data
from test_ctc import enumerate_paths
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, HubertConfig, HubertModel
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXMLP
from transformers.models.hubert.modeling_hubert import HubertFeedForward

import hubert_gpt_bridge as script
from common import hubert, lora, metrics
from common.errors import UserError
from common.figures import read_log
from common.running import bridge_figures, listening, options
from common.running.batches import MicroBatch, make_batch
from common.running.beam_models import CharacterModel
from common.running.corpora import Corpus, Utterance, load_corpus
from common.running.pretrained import load_pieces
from common.running.process import Place, reseed
from common.running.runs import load_run
from common.running.weights import load_weights, save_weights
from common.text import Characters, Pieces
from hubert_gpt_bridge import compress, compute_losses, total_loss, vectors_of
from tools import published


def talking_bridge(weights: dict) -> None:
    weights["bridge_proj.weight"] *= 30


ENTRY = Script(
    methods=("ctc", "gpt"),
    teacher="--gpt",
    small=f"{SMALL} --ctc-epochs 5",
    random="--mask-time 0.1 --layerdrop 0.2",
    exported={"audio_encoder", "bridge_convs", "bridge_proj", "llm"},
    trained={"audio_encoder", "bridge_convs", "bridge_proj", "llm"},
    files={"attention.png", "shapes.json"},
    report={"listening_gap", "trained_params", "embeddings_per_second"},
    make_talk=talking_bridge,
    other={"bridge_layers": 3},
    beam=False,
    times=False,
    pretrained="gpt",
    others={"--hubert": "hubert"},
    stage="--ctc-run",
    still="--ctc-lr 1e-9 --lr-hubert 1e-9 --lr-bridge 1e-9 --lr-llm 1e-9",
)


CPU = Place(0, 1, torch.device("cpu"))
MODES = ("remove_blank", "average", "average_remove_blank")
TINY = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=(4, 4, 4, 16),
    conv_kernel=(20, 8, 8, 4), conv_stride=(10, 4, 4, 2), num_feat_extract_layers=4, num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=4, do_stable_layer_norm=True,
)  # fmt: skip
PUBLISHED_CNN = dict(
    conv_dim=(4,) * 7,
    conv_kernel=(10, 3, 3, 3, 3, 2, 2),
    conv_stride=(5, 2, 2, 2, 2, 2, 2),
    num_feat_extract_layers=7,
)
TEXTS = ["the king had flour", "a sail", "her son"]


def read_config(words: str) -> script.Config:
    (config,) = read_configs("hubert_gpt_bridge", f"--preset smoke {words}".split())
    return config


def losses_of(made, batch=None) -> dict[str, torch.Tensor]:
    """{"lm", "ctc"}, those that the model has, of each utterance (B,)."""
    m, batch = made.recogniser, batch or made.batch
    h, lengths = m.encode(batch)
    found = {"lm": script.answer_losses(m, h, lengths, batch)}
    if m.characters is not None:
        found["ctc"] = script.ctc_losses(m.characters, m.log_probs(h), lengths, batch)
    return found


@pytest.fixture
def made(model):
    """A tiny recogniser with random weights, and noise with texts of 4, 2 and 2 words."""

    def build(options: str = "", seconds=(1.3, 0.7, 0.9), **sizes) -> SimpleNamespace:
        config = read_config(f"--method gpt {options}")
        reseed(1)
        tokenizer = Pieces(load_pieces(str(model("gpt")), "--gpt", ""))
        gpt = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
        llm = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                **gpt, vocab_size=tokenizer.size - 1, eos_token_id=4, initializer_range=0.2
            )
        )
        characters = Characters.build(TEXTS) if config.bridge == "ctc" else None
        encoder = HubertModel(HubertConfig(**TINY | {"feat_extract_norm": "layer"} | sizes))
        recogniser = script.BridgedGPT(config, encoder, llm, tokenizer, characters).eval()
        utterances = [SimpleNamespace(id=text, text=text) for text in TEXTS][: len(seconds)]
        waves = [torch.randn(round(16000 * s)) for s in seconds]
        labels = [tokenizer.encode(u.text) for u in utterances]
        batch = make_batch(waves, labels, utterances, {}, 0, MicroBatch([]))
        return SimpleNamespace(
            config=config, recogniser=recogniser, llm=llm, tokenizer=tokenizer, batch=batch
        )

    return build


def alone(batch, i: int):
    n, u = int(batch.samples[i]), int(batch.target_lengths[i])
    return make_batch(
        [batch.waves[i, :n]],
        [batch.targets[i, :u].tolist()],
        [batch.utterances[i]],
        {},
        0,
        batch.plan,
    )


# ----------------------------------------------------------------------------------------------------------- equations


def test_the_equation_map_names_what_exists():
    rows = re.findall(r" {2,}(\S+) {2,}(test_\w+)$", script.__doc__, re.M)
    assert len(rows) == 8
    for function, test in rows:
        assert callable(operator.attrgetter(function)(script)) and callable(globals()[test])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_t(made, layers):
    """T' of the bridge, also for what is shorter than it can read."""
    m = made(f"--bridge-layers {layers}", seconds=(1.3, 0.01))
    a, sizes = m.recogniser.bridge(*m.recogniser.encode(m.batch))
    for samples, n in zip([20800, m.recogniser.shortest()], sizes, strict=True):
        for kernel, stride in [(20, 10), (8, 4), (8, 4), (4, 2)] + [(4, 2)] * layers:
            samples = (samples - kernel) // stride + 1
        assert n == samples >= 1
    assert sizes[1] == 1 and a.shape == (2, sizes[0], 16)


def test_lengths_of_the_published_model(made):
    recogniser = made("", **PUBLISHED_CNN).recogniser
    assert recogniser.shortest() == 3280
    for samples, frames, vectors in (
        (16000, 49, 10),
        (16 * 16000, 799, 198),
        (3280, 10, 1),
        (3279, 10, 1),
        (1, 10, 1),
    ):
        batch = make_batch([torch.randn(samples)], [[]], [], {}, 0, MicroBatch([]))
        with torch.no_grad():
            h, lengths = recogniser.encode(batch)
            assert lengths.tolist() == [frames]
            assert recogniser.bridge(h, lengths)[1] == [vectors]


def test_ctc(made):
    """Of the characters, against an enumeration of all paths."""
    m = made("--bridge ctc --ctc-run auto", seconds=(0.13,))
    m.batch.utterances[0].text = "a a"
    log_probs = m.recogniser.log_probs(m.recogniser.encode(m.batch)[0])
    assert 3 < log_probs.shape[1] < 8
    expected = enumerate_paths(
        log_probs[0].detach().double(), m.recogniser.characters.encode("a a")
    )
    assert losses_of(m)["ctc"].item() == pytest.approx(expected, rel=1e-5)


def spoken(path: str) -> torch.Tensor:
    """log-probabilities (T, 3) whose best path reads so, with - for the blank."""
    labels = torch.tensor(["-ab".index(c) for c in path])
    return (torch.nn.functional.one_hot(labels, 3) * 2.0).log_softmax(-1)


def test_runs():
    """a a - a b b - -: what each mode keeps, and means of."""
    log_probs = spoken("aa-abb--")
    assert vectors_of(log_probs, "remove_blank").tolist() == [0, 1, -1, 2, 3, 4, -1, -1]
    assert vectors_of(log_probs, "average").tolist() == [0, 0, 1, 2, 3, 3, 4, 4]
    assert vectors_of(log_probs, "average_remove_blank").tolist() == [0, 0, -1, 1, 2, 2, -1, -1]
    h = torch.tensor([1.0, 3, 50, 4, 10, 20, 60, 80])[None, :, None]
    expected = {
        "remove_blank": [1, 3, 4, 10, 20],
        "average": [2, 50, 4, 15, 70],
        "average_remove_blank": [2, 4, 15],
    }
    for mode, values in expected.items():
        found, sizes = compress(h, torch.tensor([8]), log_probs[None], mode)
        assert found[0, :, 0].tolist() == values and sizes == [len(values)]


@pytest.mark.parametrize("mode", MODES)
def test_an_utterance_that_is_all_blank_keeps_its_least_blank_frame(mode):
    log_probs = torch.stack([spoken("----"), spoken("a-bb")])
    log_probs[0, 2] = torch.tensor([0.4, 0.3, 0.3]).log()
    h = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 9]])[..., None].requires_grad_()
    found, sizes = compress(h, torch.tensor([4, 3]), log_probs.requires_grad_(), mode)
    assert found[0, : sizes[0], 0].tolist() == ([2.5] if mode == "average" else [3.0])
    assert found[1, : sizes[1], 0].tolist() == (
        [5, 6, 7] if mode == "average" else [5, 7]
    )  # the last is padding
    found.sum().backward()
    assert h.grad.abs().sum() > 0 and log_probs.grad is None


@pytest.mark.parametrize("bridge", ["conv", "ctc"])
def test_lm(made, bridge):
    """The cross-entropy of y_1 … y_U </s> behind <s> a [SEP], one piece after the other."""
    m = made(f"--bridge {bridge} --ctc-run auto")
    losses = losses_of(m)["lm"]
    table, frame = m.llm.get_input_embeddings(), m.recogniser.frame()
    (begin,), (separator,), end = frame
    assert m.tokenizer.tokenizer.convert_ids_to_tokens([begin, separator, end]) == [
        "<s>",
        "[SEP]",
        "</s>",
    ]
    with torch.no_grad():
        a, sizes = m.recogniser.bridge(*m.recogniser.encode(m.batch))
        for b, n in enumerate(sizes):
            written, total = [separator], 0.0
            for y in [*(i - 1 for i in m.tokenizer.encode(TEXTS[b])), end]:
                row = torch.cat(
                    [table(torch.tensor([begin])), a[b, :n], table(torch.tensor(written))]
                )
                total -= m.llm(inputs_embeds=row[None]).logits[0, -1].log_softmax(-1)[y].item()
                written.append(y)
            assert losses[b].item() == pytest.approx(total, rel=1e-5)


def test_loss(made):
    m = made("--bridge ctc --ctc-run auto")
    losses = {name: loss.sum() for name, loss in losses_of(m).items()}
    expected = losses["lm"] + 0.3 * losses["ctc"]
    torch.testing.assert_close(total_loss(losses, 0.3), expected)
    assert total_loss({"ctc": losses["ctc"]}, 0.3) == losses["ctc"]
    assert total_loss({"lm": losses["lm"]}, 0.3) == losses["lm"]
    config = options.with_values(m.config, ctc_weight=0.3)
    loss, parts = compute_losses(m.recogniser, m.batch, config, CPU)
    torch.testing.assert_close(loss, expected)
    assert parts["ctc"] == losses["ctc"] and parts["lm"] == losses["lm"]
    assert parts["pieces"] == sum(len(m.tokenizer.encode(text)) + 1 for text in TEXTS)
    assert parts["characters"] == sum(map(len, TEXTS))
    plain = made("")
    assert "ctc" not in compute_losses(plain.recogniser, m.batch, plain.config, CPU)[1]


def test_lora(made):
    """Adapters change nothing at first; on query_key_value alone; merged they compute the same."""
    m = made("--bridge conv")
    before = losses_of(m)["lm"]
    lora.adapt(m.llm, 2, lora.NEOX["attention"])
    assert torch.equal(losses_of(m)["lm"], before)
    learning = [name for name, p in m.llm.named_parameters() if p.requires_grad]
    assert len(learning) == 4 and all(".query_key_value." in name for name in learning)
    for part in m.llm.modules():
        if isinstance(part, lora.LoRA):
            torch.nn.init.normal_(part.B)
            x = torch.randn(3, part.base.weight.shape[1])
            W, b = part.base.weight, part.base.bias
            torch.testing.assert_close(part(x), x @ W.T + b + 2 * (x @ part.A.T @ part.B.T))
    adapted = losses_of(m)["lm"]
    assert (adapted - before).abs().min() > 1e-2
    lora.merge(m.llm)
    torch.testing.assert_close(losses_of(m)["lm"], adapted, atol=1e-4, rtol=1e-4)


def test_gap(made, corpus):
    """By hand over the same utterances; and 0 where the audio does not matter."""
    m = made("")

    def answers(batch):
        return losses_of(m, batch)["lm"]

    arguments = answers, corpus.dev, m.config, CPU
    found = listening.measure_gap(m.recogniser, *arguments)["listening_gap"]
    losses, pieces = [0.0, 0.0], [0, 0]
    for swapped, batch in listening.batches(
        corpus.dev, m.config, m.tokenizer.encode, lambda *_: True
    ):
        with torch.no_grad():
            losses[swapped] += answers(batch).sum().item()
        pieces[swapped] += int((batch.target_lengths + 1).sum())
    assert (
        found == pytest.approx(losses[1] / pieces[1] - losses[0] / pieces[0], abs=6e-4)
        and pieces[0] == pieces[1]
    )
    m.recogniser.bridge_proj.weight.data.zero_()
    m.recogniser.bridge_proj.bias.data.zero_()
    found = listening.measure_gap(m.recogniser, *arguments)["listening_gap"]
    assert abs(found) < 0.1  # the number of vectors still tells something


def test_limits(made):
    """As the published code has it, and with the demo's 12 a second."""
    samples = torch.tensor([1, 16000, 40000, 16 * 16000])
    for rate, expected in ((4, [20, 24, 30, 84]), (12, [20, 32, 50, 212])):
        assert (
            made(f"--pieces-per-second {rate} --more-pieces 20").recogniser.limits(samples)
            == expected
        )
    full = script.PRESETS["full"].answers
    assert (full.pieces_per_second, full.more_pieces) == (4, 20)


# --------------------------------------------------------------------------------------------------- alone and together


@pytest.mark.parametrize(
    "options",
    ["", *(f"--bridge ctc --ctc-run auto --compression {mode}" for mode in MODES)],
    ids=["conv", *MODES],
)
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_alone_is_as_in_a_batch(made, options, norm):
    m = made(options, feat_extract_norm=norm, do_stable_layer_norm=norm == "layer")
    with torch.no_grad():
        together = losses_of(m)
        texts = m.recogniser.transcribe(m.batch, CPU)
        for i in range(len(m.batch.utterances)):
            one = alone(m.batch, i)
            for name, losses in losses_of(m, one).items():
                torch.testing.assert_close(losses[0], together[name][i], atol=1e-4, rtol=1e-5)
            assert m.recogniser.transcribe(one, CPU) == [texts[i]]


@pytest.mark.parametrize("decode", ["beam", "top_k", "top_p"])
def test_other_searches(made, decode):
    m = made()
    search = {decode: {"beam": 3, "top_k": 10, "top_p": 0.9}[decode]}
    with torch.no_grad():
        first, again = (m.recogniser.transcribe(m.batch, CPU, **search) for _ in range(2))
        assert first == again  # drawn from the seed
        assert first != m.recogniser.transcribe(m.batch, CPU)


@pytest.mark.parametrize("decode", ["top_k", "top_p"])
def test_drawn_answers_do_not_depend_on_the_batch(made, decode):
    m = made()
    search = {decode: {"top_k": 10, "top_p": 0.9}[decode]}
    with torch.no_grad():
        together = m.recogniser.transcribe(m.batch, CPU, **search)
        alone_each = [
            m.recogniser.transcribe(alone(m.batch, i), CPU, **search)[0] for i in range(3)
        ]
    assert [t.text for t in together] == [t.text for t in alone_each]


@pytest.mark.parametrize("least", [0, 2])
def test_an_answer_may_be_empty_or_has_to_have_so_many_pieces(made, least):
    m = made(f"--least-pieces {least}")
    m.llm.gpt_neox.final_layer_norm.weight.data.zero_()
    m.llm.gpt_neox.final_layer_norm.bias.data.fill_(1.0)
    head = m.llm.get_output_embeddings().weight.data.zero_()
    head[m.recogniser.frame().end], head[6] = 2.0, 1.0  # surest of the end, then of piece 6
    texts = [t.text for t in m.recogniser.transcribe(m.batch, CPU)]
    assert texts == [m.tokenizer.decode([7] * least)] * 3


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "--bridge ctc --ctc-run auto"], ids=["conv", "ctc"])
def test_it_learns_a_few_clips_by_heart(made, options, corpus):
    """Eight of them, each with its own words."""
    from common.running.audio import read_audio

    m = made(options, hidden_size=32, conv_dim=(8, 8, 16, 32))
    some = [corpus.train[i] for i in range(0, 80, 10)]
    m.recogniser.characters = (
        Characters.build(u.text for u in corpus.train) if m.recogniser.characters else None
    )
    reseed(1)
    if m.recogniser.characters:
        m.recogniser.ctc_head = torch.nn.Linear(32, m.recogniser.characters.size)
    labels = [m.tokenizer.encode(u.text) for u in some]
    batch = make_batch([read_audio(u.audio) for u in some], labels, some, {}, 0, MicroBatch([]))
    optimizer = torch.optim.AdamW(m.recogniser.parameters(), lr=5e-3)
    for _ in range(150):
        loss, _ = compute_losses(m.recogniser, batch, m.config, CPU)
        optimizer.zero_grad()
        (loss / len(some)).backward()
        torch.nn.utils.clip_grad_norm_(m.recogniser.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        found = [t.text for t in m.recogniser.transcribe(batch, CPU)]
    assert metrics.character_errors([u.text for u in some], found).errors == 0


# ----------------------------------------------------------------------------------------------------- what is trained


@pytest.fixture(scope="module")
def finished(runs):
    return runs("hubert_gpt_bridge")


@pytest.mark.parametrize("part", ["hubert", "bridge", "llm", "cnn"])
def test_what_is_frozen_stays_as_it_was(finished, tmp_path, part):
    """Byte by byte; HuBERT in evaluation mode, with masks and dropped layers switched on for what is trained."""
    first = str(finished.first_stage)
    frozen = ["--train-cnn", "False"] if part == "cnn" else [f"--lr-{part}", 0]
    finished.train("--ctc-run", first, "--max-steps", 2, *frozen, "--out", tmp_path / "run")
    before, after = (
        load_weights(f"{folder}/model.safetensors") for folder in (first, tmp_path / "run")
    )
    names = {"hubert": "audio_encoder.", "cnn": "audio_encoder.feature_extractor."}
    held = [name for name in after if name.startswith(names.get(part, "-"))]
    changed = [
        name for name in before if name in after and not torch.equal(before[name], after[name])
    ]
    assert not set(held) & set(changed)
    assert bool(held) == (part in names) and bool(changed) == (part != "hubert")
    assert (
        ("llm.supplied" in after)
        == (part == "llm")
        == (not any("llm.gpt_neox" in name for name in after))
    )
    if part == "bridge":  # it begins as in any other run of this seed
        finished.train("--ctc-run", first, "--max-steps", 1, *frozen, "--out", tmp_path / "again")
        again = load_weights(tmp_path / "again" / "model.safetensors")
        assert all(torch.equal(after[n], again[n]) for n in after if n.startswith("bridge_"))


@pytest.mark.slow
def test_checkpointing_gradients_computes_again_and_changes_nothing(
    finished, tmp_path, monkeypatch
):
    """The layers of HuBERT and of GPT go forward once more for every batch that is learnt from."""
    weights, counts, calls = [], [], Counter()
    for part in (GPTNeoXMLP, HubertFeedForward):
        forward = part.forward

        def counted(self, *inputs, forward=forward, **options):
            calls[type(self)] += 1
            return forward(self, *inputs, **options)

        monkeypatch.setattr(part, "forward", counted)
    for more in ([], ["--gradient-checkpointing"]):
        folder = tmp_path / str(len(more))
        finished.train("--ctc-run", finished.first_stage, "--max-steps", 2, *more, "--out", folder)
        weights.append(load_weights(folder / "model.safetensors"))
        counts.append(dict(calls))
        calls.clear()
    assert len(counts[0]) == 2 and all(counts[1][part] > n for part, n in counts[0].items())
    assert weights[0].keys() == weights[1].keys()
    for name, x in weights[0].items():
        torch.testing.assert_close(x, weights[1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_an_adapted_run_keeps_adapters_alone_and_is_scored_on_both_domains(
    finished, tmp_path, root
):
    options = [
        "--preset",
        "smoke",
        "--root",
        root,
        "--data",
        "demo-talk-smoke",
        "--init",
        finished.folder,
    ]
    adapted = [
        "--lora-rank",
        2,
        "--lr-hubert",
        0,
        "--lr-bridge",
        0,
        "--lr-llm",
        0.05,
        "--max-steps",
        3,
    ]
    result = finished.main(*options, *adapted, "--method", "gpt", "--out", tmp_path / "run")
    both = {"test", f"{finished.data.name}-test"}  # each domain calls its own "test"
    assert set(result["wer"]) == both and result["trained_params"] < 0.1 * result["params"]
    weights = load_weights(tmp_path / "run" / "model.safetensors")
    assert {name.split(".")[-1] for name in weights if name.startswith("llm.")} == {
        "A",
        "B",
        "supplied",
    }
    again = finished.evaluate(tmp_path / "run", "--root", root)
    assert again["wer"]["test"] == result["wer"]["test"]
    merged = tmp_path / "merged"
    published.from_run(tmp_path / "run", tmp_path / "whole", str(root))
    published.to_run(str(tmp_path / "whole"), merged, str(root))
    data = ["--root", root, "--data", "demo-talk-smoke"]
    limits = json.loads((merged / "config.json").read_text())  # as in the run
    limits["config"] |= {"pieces_per_second": 6.0, "more_pieces": 5, "least_pieces": 0}
    (merged / "config.json").write_text(json.dumps(limits))
    assert finished.evaluate(merged, *data)["wer"] == {"test": result["wer"]["test"]}
    other = finished.main(*finished.options("--max-steps", 1, "--out", tmp_path / "other"))
    assert other["wer"]
    base = shutil.copytree(finished.folder, tmp_path / "base")
    name_init(tmp_path / "run", base)
    assert finished.evaluate(tmp_path / "run", "--root", root)["wer"]
    state = load_weights(base / "model.safetensors")
    state["llm.gpt_neox.layers.1.mlp.dense_h_to_4h.weight"][0, 0] += 1e-3
    save_weights(base / "model.safetensors", state)
    with pytest.raises(UserError, match="belong to another pretrained model"):
        finished.evaluate(tmp_path / "run", "--root", root)
    name_init(tmp_path / "run", tmp_path / "other")
    with pytest.raises(UserError, match="belong to another pretrained model"):
        finished.evaluate(tmp_path / "run", "--root", root)


@pytest.mark.slow
def test_dev_may_choose_the_run_as_it_was(finished, tmp_path, root):
    """Adapters that break everything: their start is exported, which says what the run said without them."""
    data = ["--root", root, "--data", "demo-jargon-smoke"]
    before = finished.evaluate(finished.folder, *data, "--out", tmp_path / "before")
    adapters = ["--lora-rank", 2, "--lora-maps", "all", "--lr-hubert", 0, "--lr-bridge", 0]
    options = ["--preset", "smoke", "--init", finished.folder, *data, *adapters, "--lr-llm", 30.0]
    result = finished.main(*options, "--method", "gpt", "--epochs", 1, "--out", tmp_path / "run")
    found = load_weights(tmp_path / "run" / "model.safetensors")
    low = [x for name, x in found.items() if name.endswith(".B")]
    assert len(low) == 4 * 2 and not any(x.any() for x in low)  # four linear maps in two layers
    assert result["wer"]["test"] == before["wer"]["test"]
    hypotheses = [(tmp_path / name / "hyp_test.tsv").read_bytes() for name in ("before", "run")]
    assert hypotheses[0] == hypotheses[1]
    dev = [entry["dev"] for entry in read_log(tmp_path / "run") if "dev" in entry]
    assert len(dev) == 2 and dev[0] < dev[1]


@pytest.mark.slow
def test_ctc_is_adapted_too(finished, corpus, tmp_path):
    """It begins with the finished run, whose score is its epoch 0."""
    data = write_data(tmp_path / "data", corpus.train[:8], corpus.dev[:4], corpus.dev[4:6])
    options = ["--method", "ctc", "--ctc-epochs", 1, "--ctc-lr", 1e-6, "--out", tmp_path / "run"]
    finished.train("--init", finished.first_stage, *options, data=data)
    before, after = (
        load_weights(folder / "model.safetensors")
        for folder in (finished.first_stage, tmp_path / "run")
    )
    assert max((after[name] - before[name]).abs().max() for name in before) < 1e-4
    dev = [entry["dev"] for entry in read_log(tmp_path / "run") if "dev" in entry]
    assert len(dev) == 2


@pytest.mark.slow
def test_adapters_switched_off(finished, tmp_path, root, monkeypatch):
    """Off, the model says what it said before, to the last digit of its probability; on, it does not."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import choose_adapter

    adapters = ["--lora-rank", 2, "--lora-maps", "head", "--lr-hubert", 0, "--lr-bridge", 0]
    data = ["--root", root, "--data", "demo-jargon-smoke"]
    options = ["--preset", "smoke", "--init", finished.folder, *data, *adapters, "--lr-llm", 1e-3]
    finished.main(*options, "--method", "gpt", "--max-steps", 1, "--out", tmp_path / "run")
    run, base = load_run(tmp_path / "run", CPU, root), load_run(finished.folder, CPU, root)
    for part in run.recogniser.modules():
        if isinstance(part, lora.LoRA):
            nn.init.normal_(part.B, std=0.1)
    tests = load_corpus("demo-jargon-smoke", root, scoring=True).tests["test"]
    pairs = choose_adapter.answers_of_set(run, tests, CPU)
    as_before = choose_adapter.answers_of_set(base, tests, CPU)
    assert [pair["off"] for pair in pairs] == [pair["on"] for pair in as_before]
    assert [pair["off"] for pair in pairs] != [pair["on"] for pair in pairs]
    assert [pair["on"] for pair in choose_adapter.answers_of_set(run, tests, CPU)] == [
        pair["on"] for pair in pairs
    ]


def name_init(run, base) -> None:
    """Lets the run say that it went on from another one."""
    stored = json.loads((run / "config.json").read_text())
    stored["config"]["init"] = str(base)
    (run / "config.json").write_text(json.dumps(stored))


def test_ctc_with_the_language_model(finished, tmp_path, model, capsys):
    search = ["--decode", "beam", "--lm", model("gpt"), "--beam", 3, "--lm-weight", 0.2, 0.5]
    result = finished.evaluate(finished.first_stage, *search, "--out", tmp_path)
    assert result["lm_weight"] in (0.2, 0.5) and result["greedy_rtf"] > 0
    assert capsys.readouterr().err.count("dev WER") == 2


def test_characters_of_a_language_model_of_pieces(model):
    """p(next character | prefix) sums to 1, within a word; behind one, the space has all that may follow it."""
    characters = Characters(" 'abcdefghijklmnopqrstuvwxyz")
    lm = CharacterModel(str(model("gpt")), "--lm", "", characters, "cpu")
    prefixes = [tuple(characters.encode(text)) for text in ("the", "the sa")]
    log_probs = lm(prefixes)
    assert log_probs.shape == (2, characters.size)
    behind, within = log_probs[:, 1:].exp().sum(1).tolist()
    assert 1 <= behind < 1.3 and within == pytest.approx(1, abs=0.02)
    assert (log_probs[:, 0] < log_probs[:, characters.encode(" ")[0]]).all()
    assert torch.equal(lm(prefixes[1:])[0], log_probs[1])


@pytest.mark.slow
def test_a_run_hears_as_it_was_trained(finished, tmp_path, model, corpus):
    """With normalised audio, where its HuBERT asks for it; when it goes on, is scored or published, too."""
    folder = tmp_path / "hubert"
    shutil.copytree(model("hubert"), folder)
    asked = json.loads((folder / "preprocessor_config.json").read_text())
    assert asked["do_normalize"] is False  # the world's own
    (folder / "preprocessor_config.json").write_text(json.dumps(asked | {"do_normalize": True}))
    options = ["--hubert", folder, "--ctc-run", "none", "--max-steps", 2, "--out", tmp_path / "run"]
    data = write_data(tmp_path / "data", corpus.train[:6], corpus.dev[:2], corpus.dev[2:3])
    finished.train(*options, data=data, plain=True)
    run = tmp_path / "run"

    def hears(where) -> bool:
        return load_run(where, CPU).recogniser.audio_encoder.config.do_normalize

    assert hears(run)
    (folder / "preprocessor_config.json").unlink()
    finished.train(*options, "--resume", data=data, plain=True)
    assert hears(run)
    shapes = json.loads((run / "shapes.json").read_text())
    del shapes["audio_encoder_config"][
        "do_normalize"
    ]  # as older runs, which learnt from audio as it is
    (run / "shapes.json").write_text(json.dumps(shapes))
    finished.train(*options, "--resume", data=data, plain=True)
    assert not hears(run)


# ------------------------------------------------------------------------------------------------- the published layout


def test_summary_of_the_published_model(capsys):
    parts = script.main(["--preset", "full", "--summary"])
    assert parts["audio_encoder"] == 94_371_712 and parts["llm"] == 3_607_245_312
    assert (
        parts["bridge_convs"] + parts["bridge_proj"] == 6_885_632
        and parts["total"] == 3_708_502_656
    )
    assert "3,708,502,656" in capsys.readouterr().out


def test_other_bridges_and_other_symbols_are_refused(finished, tmp_path):
    options = ["--init", finished.folder, "--max-steps", 1, "--out"]
    with pytest.raises(UserError, match="is another model: give --bridge-layers 2 --end </s>"):
        finished.train(*options, tmp_path / "a", "--bridge-layers", 3, "--end", "<s>")
    with pytest.raises(UserError, match=r"<sep> is no piece of GPT's: give --begin"):
        finished.train("--max-steps", 1, "--out", tmp_path / "b", "--separator", "<sep>")
    with pytest.raises(SystemExit):
        script.main(["--method", "gpt", "--lora-rank", "8", "--lr-llm", "0"])
    with pytest.raises(SystemExit):
        script.main(["--preset", "full", "--bridge", "ctc"])


def test_the_way_back_from_ctc(finished, tmp_path):
    with pytest.raises(UserError, match="is a run of ctc, not gpt"):
        finished.train("--init", finished.first_stage, "--max-steps", 1, "--out", tmp_path / "run")


def test_the_compressing_bridge_and_its_figures(finished, corpus, tmp_path):
    data = write_data(tmp_path / "data", corpus.train[:8], corpus.dev[:2], corpus.dev[2:4])
    options = [
        "--bridge",
        "ctc",
        "--compression",
        "average_remove_blank",
        "--max-steps",
        2,
        "--out",
        tmp_path / "run",
    ]
    first = ["--ctc-run", "auto", "--max-steps", 2, "--out", tmp_path / "ctc", "--method", "ctc"]
    finished.train(*first, data=data)
    result = finished.main(*finished.options(*options, "--ctc-run", tmp_path / "ctc", data=data))
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"compression.png", "attention.png", "shapes.json", "characters"} <= files
    assert {"ctc_head", "bridge_proj"} <= {
        n.split(".")[0] for n in load_weights(tmp_path / "run/model.safetensors")
    }
    assert result["embeddings"] > 0 and result["embeddings_per_second"] > 0
    again = finished.evaluate(tmp_path / "run")
    assert again["wer"] == result["wer"]
    assert again["embeddings_per_second"] == result["embeddings_per_second"]


def fits_of(recogniser):
    return hubert.fits_of(
        recogniser.audio_encoder.config, recogniser.characters, recogniser.shortest()
    )


def test_whether_ctc_can_write_a_text_is_asked_of_the_text(made):
    """Of another domain: GPT's tokenizer drops a character that it does not know, so its labels say nothing of it."""
    m = made("--bridge ctc --ctc-run auto", **PUBLISHED_CNN)
    fits, known = fits_of(m.recogniser), m.recogniser.characters.characters
    text = known.strip()[0]
    labels = m.tokenizer.encode(text)
    assert fits(16000, labels, text) and "é" not in known
    assert not fits(16000, labels, f"{text}é")
    assert fits(1, labels, text) and not fits(1, labels, 2 * text)  # a frame
    assert fits(16000, labels, 25 * text) and not fits(
        16000, labels, 26 * text
    )  # 49 frames, of which 24 are blank
    without = fits_of(made("").recogniser)
    assert without(1, labels, f"{text}é" * 99)  # GPT can


def test_the_first_clip_that_can_be_read_is_drawn(made, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.wav", torch.zeros(16000 * 3).numpy(), 16000)
    soundfile.write(tmp_path / "a.wav", torch.randn(16000).numpy() * 0.1, 16000)
    (tmp_path / "empty.mp3").touch()
    seconds = {"empty.mp3": 1.0, "absent.wav": 1.0, "long.wav": 3.0, "a.wav": 1.0}
    dev = [Utterance(name, str(tmp_path / name), TEXTS[0], s) for name, s in seconds.items()]
    m = made("--bridge ctc --ctc-run auto --cut-seconds 2")
    config, corpus = replace(m.config, out=str(tmp_path)), Corpus([], dev, {}, {})
    bridge_figures.draw_compression(config, m.recogniser, corpus, CPU, vectors_of)
    bridge_figures.draw_attention(config, m.recogniser, corpus, CPU)
    assert all(
        (tmp_path / f"{name}.png").stat().st_size > 1000 for name in ("compression", "attention")
    )
    with pytest.raises(
        UserError, match="no utterance that it could show is short enough and can be read"
    ):
        bridge_figures.draw_attention(config, m.recogniser, Corpus([], dev[:3], {}, {}), CPU)
