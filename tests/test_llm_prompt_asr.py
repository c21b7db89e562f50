"""llm_prompt_asr.py: its equations in plain Python, what is frozen and saved, and where encoder and model come from."""

import json
import math
import operator
import pickle
import random
import re
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import soundfile
import torch
from conftest import AUGMENTED, SMALL, SMALL_CONFORMER, Script, read_configs, write_data
from test_ctc import enumerate_paths
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import llm_prompt_asr as script
from common import alignment, lora, prompting
from common.errors import UserError
from common.figures import read_log
from common.running import listening
from common.running.batches import MicroBatch, make_batch
from common.running.corpora import Utterance
from common.running.pretrained import load_causal
from common.running.process import Place, reseed
from common.running.runs import load_run
from common.running.weights import load_weights, own_state
from llm_prompt_asr import answer_losses, compute_losses, hide, stack


def talking_prompt(weights: dict) -> None:
    """Vectors of the prompt that are larger, and so tell the language model more apart."""
    weights["projection.weight"] *= 30


ENTRY = Script(
    methods=("ctc", "llm"),
    teacher="--lm",
    small=f"{SMALL} {SMALL_CONFORMER} --stride-ms 160 --lora-rank 0 --lr-lm 0.01",
    random=f"{AUGMENTED} --mask-fraction 0.3",
    exported={"frontend", "encoder", "projection", "lm"},
    trained={"frontend", "encoder", "projection", "lm"},
    files={"alignment.png", "listening.png"},
    report={"listening_gap", "alignment", "text_perplexity", "trained_params"},
    make_talk=talking_prompt,
    beam=False,
    times=False,
    pretrained="llama",
    stage="--encoder",
    still="--ctc-lr 1e-9 --lr-encoder 1e-9 --lr-projection 1e-9 --lr-lm 1e-9",
)


CPU = Place(0, 1, torch.device("cpu"))


def read_config(words: str) -> script.Config:
    (config,) = read_configs("llm_prompt_asr", f"--preset smoke {words}".split())
    return config


@pytest.fixture
def made(model):
    """A tiny recogniser of the second stage, and a batch of noise with texts of 4 and 2 words."""

    def build(options: str = "", seconds=(1.3, 0.7)) -> SimpleNamespace:
        config = read_config(
            f"--method llm --lm {model('llama')} --dim 32 --heads 2 --ff-dim 64 --channels 4 {options}"
        )
        reseed(1)
        tokenizer, lm = script.load_pieces(config, CPU), script.load_lm(config, CPU)
        recogniser = script.PromptedLM(config, tokenizer, lm).eval()
        texts = ["the king had flour", "a sail"]
        utterances = [SimpleNamespace(id=text, text=text) for text in texts][: len(seconds)]
        waves = [torch.randn(round(16000 * s)) for s in seconds]
        labels = [tokenizer.encode(u.text) for u in utterances]
        batch = make_batch(waves, labels, utterances, {}, 0, MicroBatch([]))
        return SimpleNamespace(
            config=config, recogniser=recogniser, lm=lm, tokenizer=tokenizer, batch=batch
        )

    return build


# ----------------------------------------------------------------------------------------------------------- equations


def test_the_equation_map_names_what_exists():
    rows = re.findall(r" {2,}(\S+) {2,}(test_\w+)$", script.__doc__, re.M)
    assert len(rows) == 8
    for function, test in rows:
        assert callable(operator.attrgetter(function)(script)) and callable(globals()[test])


def test_ctc():
    """Of the whole first stage, against an enumeration of all paths."""
    config = read_config("--method ctc --dim 32 --heads 2 --ff-dim 64 --channels 4")
    reseed(1)
    recogniser = script.CTCRecogniser(config, None, 4).eval()
    waves = [torch.randn(16000 * n // 100) for n in (46, 38)]
    batch = make_batch(waves, [[2, 3], [1]], [None, None], {}, 0, MicroBatch([]))
    losses = script.ctc_losses(recogniser, batch, CPU)
    assert compute_losses(recogniser, batch, config, CPU) == losses.sum()
    with torch.no_grad():
        h, lengths = recogniser.encode(batch)
        log_probs = recogniser.log_probs(h).double()
    for b, labels in enumerate([[2, 3], [1]]):
        expected = enumerate_paths(log_probs[b, : lengths[b]], labels)
        assert losses[b].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 6, 12])
def test_stack(n):
    h, lengths = torch.randn(3, 13, 2), torch.tensor([13, 12, 1])
    stacked, sizes = stack(h, lengths, n)
    for b, T in enumerate(lengths.tolist()):
        assert sizes[b] == math.ceil(T / n)
        for i in range(stacked.shape[1]):
            expected = [h[b, t].tolist() if t < T else [0.0, 0.0] for t in range(n * i, n * i + n)]
            assert stacked[b, i].tolist() == sum(expected, [])


def test_prompt(made):
    """a_i = W s_i + b; and an utterance's vectors are the same alone and in a batch."""
    m = made("--stride-ms 240")
    with torch.no_grad():
        h, lengths = m.recogniser.encode(m.batch)
        a, sizes = m.recogniser.prompt(m.batch)
        stacked, _ = stack(h, lengths, 3)
        torch.testing.assert_close(
            a, stacked @ m.recogniser.projection.weight.T + m.recogniser.projection.bias
        )
        short = m.batch._replace(
            waves=m.batch.waves[1:, : m.batch.samples[1]], samples=m.batch.samples[1:]
        )
        alone, (size,) = m.recogniser.prompt(short)
    assert size == sizes[1]
    torch.testing.assert_close(alone[0, :size], a[1, :size], atol=1e-5, rtol=1e-5)


def test_loss(made):
    """The cross-entropy of y_1 … y_U </s>, one piece after the other."""
    m = made("--stride-ms 160")
    losses = answer_losses(m.recogniser, m.batch, m.config, CPU)
    table, (beginning, end) = m.lm.get_input_embeddings(), script.symbols(m.lm)
    with torch.no_grad():
        a, sizes = m.recogniser.prompt(m.batch)
        for b, n in enumerate(sizes):
            written, total = [beginning], 0.0
            for y in [*(i - 1 for i in m.tokenizer.encode(m.batch.utterances[b].text)), end]:
                row = torch.cat([a[b, :n], table(torch.tensor(written))])
                total -= m.lm(inputs_embeds=row[None]).logits[0, -1].log_softmax(-1)[y].item()
                written.append(y)
            assert losses[b].item() == pytest.approx(total, rel=1e-5)


def test_hide(made):
    assert (
        hide([4, 5, 6], 0.0, random.Random(1), 1) == [4, 5, 6]
        and hide([4, 5, 6], 1.0, random.Random(1), 1) == [1] * 3
    )
    hidden = hide(list(range(4000)), 0.25, random.Random(1), -1).count(-1)
    assert 900 < hidden < 1100
    m = made("--mask-fraction 0.5")
    unmasked = replace(m.config, mask_fraction=0.0)
    plain = answer_losses(m.recogniser, m.batch, m.config, CPU)  # in evaluation mode
    assert torch.equal(plain, answer_losses(m.recogniser, m.batch, unmasked, CPU))
    m.recogniser.train()
    masked = answer_losses(m.recogniser, m.batch, m.config, CPU)
    assert not torch.allclose(masked, answer_losses(m.recogniser, m.batch, unmasked, CPU))
    again = answer_losses(m.recogniser, m.batch, m.config, CPU)
    assert torch.equal(masked, again)  # what is hidden depends on the utterance alone
    m.recogniser.tokenizer.tokenizer.unk_token = m.recogniser.tokenizer.tokenizer.eos_token
    assert script.hidden_symbol(m.recogniser) == prompting.MASKED


def test_s():
    a, e = torch.randn(5, 7), torch.randn(3, 7)
    S = alignment.cosines(a, e)
    for i in range(5):
        for j in range(3):
            x, y = a[i] - a.mean(0), e[j] - e.mean(0)
            assert S[i, j].item() == pytest.approx((x @ y / x.norm() / y.norm()).item(), abs=1e-5)


def test_what_an_alignment_says():
    assert alignment.scores_of(torch.eye(4)) == {
        "rho": pytest.approx(1),
        "non_decreasing": 1,
        "chance": 5 / 8,
    }
    assert alignment.scores_of(torch.eye(4).flip(0))["rho"] == pytest.approx(-1)
    assert alignment.scores_of(torch.eye(4)[:, [0, 2, 1]])["non_decreasing"] == 0.5
    every = [
        alignment.scores_of(torch.eye(3)[:, [i, j]]) for i in range(3) for j in range(3)
    ]  # two pieces, three vectors
    assert {score["chance"] for score in every} == {
        sum(score["non_decreasing"] for score in every) / 9
    }


def test_gap(made, corpus, root):
    """By hand over the same utterances; and 0 for a recogniser that is deaf."""
    m = made(f"--root {root}")
    few = corpus.dev[:6]

    def answers(batch):
        return answer_losses(m.recogniser, batch, m.config, CPU)

    measure = partial(listening.measure_gap, m.recogniser, answers, few, m.config, CPU)
    found = measure()["listening_gap"]
    losses, pieces = [0.0, 0.0], [0, 0]
    encode = m.tokenizer.encode
    for swapped, batch in listening.batches(few, m.config, encode, listening.anything_fits):
        with torch.no_grad():
            losses[swapped] += answers(batch).sum().item()
        pieces[swapped] += int((batch.target_lengths + 1).sum())
    expected = losses[1] / pieces[1] - losses[0] / pieces[0]
    assert found == pytest.approx(expected, abs=6e-4) and pieces[0] == pieces[1]
    torch.nn.init.zeros_(m.recogniser.projection.weight)
    assert abs(measure()["listening_gap"]) < 0.05  # lengths differ still


def test_adapters():
    """W x + 2 B A x; all else of the adapters, against another library, is in test_lora.py."""
    torch.manual_seed(0)
    part = lora.LoRA(torch.nn.Linear(5, 4), rank=3)
    torch.nn.init.normal_(part.B)
    x = torch.randn(2, 5)
    expected = part.base(x) + 2 * (x @ part.A.T @ part.B.T)
    torch.testing.assert_close(part(x), expected)


# ------------------------------------------------------------------------------------------------- frozen, saved, named


def test_sizes():
    """72 million in the encoder, and the paper's adapters on LLaMA-7B."""
    (config,) = read_configs("llm_prompt_asr", ["--data", "mls"])
    parts = script.print_summary(config)
    assert abs(parts["encoder"] / 72e6 - 1) < 0.01 and parts["adapters"] == 8_388_608
    assert parts["lm"] == 6_738_415_616 + 8_388_608


@pytest.mark.parametrize("options, learns", [
    ("--lora-rank 4", {"encoder", "projection", "lm.A", "lm.B"}),
    ("--lora-rank 0 --lr-lm 0", {"encoder", "projection"}),
    ("--lora-rank 0 --lr-encoder 0", {"projection", "lm"}),
    ("--lora-rank 4 --lr-encoder 0", {"projection", "lm.A", "lm.B"}),
    ("--lora-rank 0 --lr-lm 0 --freeze-encoder-steps 3", {"projection"}),
    ("--lora-rank 0 --lr-lm 0 --freeze-encoder-steps 1", {"encoder", "projection"}),
], ids=["lora", "frozen", "all", "encoder frozen", "encoder later", "encoder at last"])  # fmt: skip
def test_what_is_frozen_stays(options, learns, runs, tmp_path, model):
    """After three updates, byte for byte, and the rest has moved; weights that --lm supplies are in no file."""
    run = runs("llm_prompt_asr")
    run.train("--max-steps", 3, "--out", tmp_path / "run", *options.split())
    _, _, config, after = load_run(tmp_path / "run", CPU)
    named = AutoModelForCausalLM.from_pretrained(model("llama"), dtype=torch.float32).state_dict()
    state, saved = after.state_dict(), load_weights(tmp_path / "run" / "model.safetensors")
    if "lm" in learns:
        assert "lm.lm_head.weight" in saved and not torch.equal(
            state["lm.lm_head.weight"], named["lm_head.weight"]
        )
    else:
        assert {name.rsplit(".", 1)[1] for name in saved if name.startswith("lm.")} <= {
            "supplied",
            "A",
            "B",
        }
        plain = {name.replace(".base.", "."): x for name, x in state.items()}
        assert all(torch.equal(plain[f"lm.{name}"], x) for name, x in named.items())
    checkpoint = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert set(checkpoint["model"]) == set(saved)
    reseed(config.seed, 1)  # as it began, but for the encoder
    fresh = script.PromptedLM(config, after.tokenizer, script.load_lm(config, CPU))
    if config.lora_rank:
        reseed(config.seed, 2)
        lora.adapt(fresh.lm, config.lora_rank)
    fresh = fresh.state_dict()
    rest = {
        name: x for name, x in own_state(after).items() if name.startswith(("projection", "lm"))
    }
    moved = {name for name, x in rest.items() if not torch.equal(x, fresh[name])}
    kinds = {
        f"lm.{name[-1]}" if name.endswith((".A", ".B")) else name.split(".")[0] for name in moved
    }
    encoder = {name: x for name, x in own_state(after).items() if name.startswith("encoder")}
    if not all(_as_in_first_stage(name, x, run) for name, x in encoder.items()):
        kinds.add("encoder")
    assert kinds == learns


@pytest.mark.slow
def test_a_seed_begins_alike_at_every_rank(runs, tmp_path):
    """The projection, and an encoder from scratch: rows of a seed differ in what they compare alone."""
    begun = []
    for rank in (0, 4, 8):
        out = tmp_path / str(rank)
        options = [
            "--lora-rank",
            rank,
            "--lr-encoder",
            0,
            "--lr-projection",
            0,
            "--encoder",
            "scratch",
        ]
        runs("llm_prompt_asr").train("--max-steps", 1, "--out", out, *options)
        weights = load_weights(out / "model.safetensors")
        begun.append({name: x for name, x in weights.items() if not name.startswith("lm.")})
    assert "projection.weight" in begun[0] and any(name.startswith("encoder") for name in begun[0])
    for other in begun[1:]:
        assert begun[0].keys() == other.keys() and all(
            torch.equal(x, other[name]) for name, x in begun[0].items()
        )


def _as_in_first_stage(name, tensor, run) -> bool:
    """Whether the encoder's weight is that of one of the first stages that were trained beside this run."""
    stages = [p / "model.safetensors" for p in run.folder.parent.glob("earlier-*")]
    return any(torch.equal(load_weights(p)[name], tensor) for p in stages)


@pytest.mark.slow
def test_another_language_model_is_noticed(runs, tmp_path, model):
    """A checkpoint without the frozen model's weights finds it by name, and knows it."""
    run = runs("llm_prompt_asr")
    shutil.copytree(model("llama"), tmp_path / "lm")
    options = [
        "--lm",
        tmp_path / "lm",
        "--lora-rank",
        4,
        "--out",
        tmp_path / "run",
        "--max-steps",
        2,
    ]
    run.train(*options)
    run.evaluate(tmp_path / "run")
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    lm.get_input_embeddings().weight.data[5] += 1
    lm.save_pretrained(tmp_path / "lm")
    with pytest.raises(UserError, match="another pretrained model than the one named"):
        run.evaluate(tmp_path / "run")
    broken = shutil.move(tmp_path / "lm", tmp_path / "broken")
    with pytest.raises(UserError, match="--lm .* give --lm a local folder"):
        run.evaluate(tmp_path / "run")
    moved = shutil.copytree(model("llama"), tmp_path / "moved")
    expected = json.loads((tmp_path / "run" / "result.json").read_text())["wer"]
    assert run.evaluate(tmp_path / "run", "--base", moved)["wer"] == expected
    with pytest.raises(UserError, match="another pretrained model than the one named"):
        run.evaluate(tmp_path / "run", "--base", broken)


def test_a_frozen_model_is_known_in_any_precision(model):
    types = torch.float32, torch.bfloat16
    marks = [load_causal(str(model("llama")), "--lm", "", True, dtype).supplied for dtype in types]
    assert torch.equal(*marks)


@pytest.mark.slow
def test_the_first_stage_is_found_refused_or_left_out(runs, tmp_path, capsys):
    run = runs("llm_prompt_asr")
    with pytest.raises(
        UserError, match="--encoder .*/ctc holds no run: give the folder of a run of ctc, or auto"
    ):
        run.train("--max-steps", 2, "--encoder", tmp_path / "ctc", "--out", tmp_path / "mistyped")
    assert not (tmp_path / "ctc").exists()
    run.train("--max-steps", 2, "--encoder", "auto", "--method", "ctc", "--out", tmp_path / "ctc")
    run.train("--max-steps", 2, "--encoder", "auto", "--out", tmp_path / "llm")  # the one beside it
    run.train(
        "--max-steps",
        1,
        "--encoder",
        tmp_path / "ctc",
        "--out",
        tmp_path / "again",
        "--stride-ms",
        320,
    )
    assert "ctc first" not in capsys.readouterr().err
    with pytest.raises(
        UserError, match=r"the ctc in .* was trained otherwise \(--seed 1 -> 2.*another --encoder"
    ):
        run.train(
            "--max-steps",
            1,
            "--encoder",
            tmp_path / "ctc",
            "--out",
            tmp_path / "other",
            "--seed",
            2,
        )
    with pytest.raises(UserError, match=r"the ctc in .* was trained otherwise \(--max-steps 2 -> "):
        run.train("--encoder", tmp_path / "ctc", "--out", tmp_path / "whole")
    run.train("--max-steps", 1, "--encoder", "scratch", "--out", tmp_path / "scratch")
    assert "ctc first" not in capsys.readouterr().err
    stage = load_weights(tmp_path / "ctc" / "model.safetensors")
    assert "ctc_head.weight" in stage and "ctc_head.weight" not in load_weights(
        tmp_path / "llm" / "model.safetensors"
    )


@pytest.mark.slow
def test_one_recogniser_for_each_language(runs, corpus, tmp_path):
    """Beside one of both; gone on with, where the second language had not begun; scored again, each by its own."""
    run, folder = runs("llm_prompt_asr"), tmp_path / "run" / "monolingual_ctc"
    data = write_data(tmp_path / "data", corpus.train[:8], corpus.dev[:4], corpus.dev[:4])
    for path in data.glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [line | {"lang": ("german", "polish")[i % 2]} for i, line in enumerate(lines)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--method", "monolingual_ctc", "ctc", "--max-steps", 2, "--out", tmp_path / "run"]
    with pytest.raises(
        UserError, match=r"test.jsonl holds several languages: split it into test-LANGUAGE.jsonl"
    ):
        run.train(*options, data=data)
    both = (data / "test.jsonl").read_text().splitlines(keepends=True)
    for i, language in enumerate(("german", "polish")):
        (data / f"test-{language}.jsonl").write_text("".join(both[i::2]))
    (data / "test.jsonl").unlink()
    found = run.train(*options, data=data)["monolingual_ctc"]
    assert (
        set(found["wer"]) == {"test-german", "test-polish"}
        and "rtf" not in found
        and found["not_scored"] == 0
    )
    shutil.rmtree(folder / "polish")
    again = run.main("--resume", "--out", folder)
    assert again["wer"] == found["wer"] and (folder / "polish" / "config.json").exists()
    for language in ("german", "polish"):
        scored = run.evaluate(folder / language)["wer"]
        assert scored == {f"test-{language}": found["wer"][f"test-{language}"]}


@pytest.mark.slow
def test_eight_utterances_are_learnt_by_listening(runs, corpus, tmp_path):
    """To no errors at all; with swapped audio the same answers are wrong."""
    run = runs("llm_prompt_asr")
    data = write_data(tmp_path / "data", corpus.train[:8], corpus.train[:8], corpus.train[:8])
    result = run.train(
        "--encoder", "scratch", "--epochs", 40, "--update-seconds", 40, "--lr-lm", 5e-3, "--lr-encoder", 3e-3,
        "--stride-ms", 320, "--speeds", 1, "--out", tmp_path / "run", data=data, plain=True,
    )  # fmt: skip
    assert result["wer"]["test"] == 0 and result["listening_gap"] > 0.3
    _, _, config, recogniser = load_run(tmp_path / "run", CPU)
    encode = recogniser.tokenizer.encode
    few = corpus.train[:8]
    for swapped, batch in listening.batches(few, config, encode, listening.anything_fits):
        answers = [t.text for t in recogniser.transcribe(batch, CPU)]
        right = sum(answer == u.text for answer, u in zip(answers, batch.utterances, strict=True))
        assert right == (0 if swapped else len(answers))
    losses = [entry["loss"] for entry in read_log(tmp_path / "run") if "loss" in entry]
    assert losses[-1] < 0.05 * losses[0]


def test_a_model_of_few_positions_is_refused(runs, tmp_path, model):
    lm = AutoModelForCausalLM.from_pretrained(model("llama"))
    lm.config.max_position_embeddings = 230
    lm.save_pretrained(tmp_path / "lm")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model("llama") / name, tmp_path / "lm")
    options = [
        "--lm",
        tmp_path / "lm",
        "--max-steps",
        1,
        "--out",
        tmp_path / "run",
        "--max-seconds",
        4,
    ]
    with pytest.raises(
        UserError, match="has 230 positions, 20.0 s of audio and an answer take 326: give a longer"
    ):
        runs("llm_prompt_asr").train(*options, "--cut-seconds", 20)
    runs("llm_prompt_asr").train(*options, "--cut-seconds", 4)


def test_a_transcript_that_is_too_long_for_the_model_is_counted(runs, tmp_path, model, corpus):
    """In training, where a model that looks positions up has none for it; in dev it is left out."""
    tokenizer = AutoTokenizer.from_pretrained(model("llama"))
    ids = dict(bos_token_id=2, eos_token_id=3, pad_token_id=0)
    sizes = dict(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=260)
    GPT2LMHeadModel(GPT2Config(**sizes, **ids)).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    soundfile.write(tmp_path / "long.wav", 0.1 * torch.randn(16000 * 7).numpy(), 16000)
    long = Utterance("long", str(tmp_path / "long.wav"), "qxzj" * 80, 7.0, session="long")
    assert len(tokenizer(long.text)["input_ids"]) > 260
    data = write_data(
        tmp_path / "data", [*corpus.train[:8], long], [*corpus.dev[:4], long], corpus.dev[4:5]
    )
    options = [
        "--lm",
        tmp_path / "lm",
        "--encoder",
        "scratch",
        "--epochs",
        1,
        "--out",
        tmp_path / "run",
    ]
    limits = ["--max-seconds", 8, "--cut-seconds", 8, "--speeds", 1, "--units-of", "transcripts"]
    result = runs("llm_prompt_asr").train(*options, *limits, "--units", 40, data=data, plain=True)
    assert result["infeasible"] == 1 and result["wer"] and result["listening_gap"] is not None


def test_what_fits_travels_without_a_model(made):
    m = made("--stride-ms 160")
    fits = pickle.loads(pickle.dumps(script.fits_of(m.recogniser)))
    assert len(pickle.dumps(fits)) < 500
    assert fits(16000, [1] * 200, "") and not fits(16000, [1] * 201, "") and not fits(10, [1], "")


def test_long_input_and_the_limit_of_an_answer(made, monkeypatch):
    """30 s at 960 ms; an answer that never ends has 12 pieces a second and 20 more, 200 at most."""
    m = made("--stride-ms 960", seconds=(30.0,))
    (transcript,) = m.recogniser.transcribe(m.batch, CPU)
    assert transcript.words is None and set(transcript.counts) == {"unstopped", "repetitions"}
    (beam,) = m.recogniser.transcribe(m.batch, CPU, beam=3)
    assert isinstance(beam.text, str)
    asked, write = [], prompting.write
    monkeypatch.setattr(
        prompting, "write", lambda *args, **how: asked.append(args[2]) or write(*args, **how)
    )
    for seconds, limit in ((30.0, 200), (1.5, 38)):
        m = made("--stride-ms 960", seconds=(seconds,))
        m.lm.lm_head.weight.data.zero_()  # all equal: 0 is written for ever
        (transcript,) = m.recogniser.transcribe(m.batch, CPU)
        assert transcript.counts == {"unstopped": 1.0, "repetitions": 1.0} and asked.pop() == [
            limit
        ]


def test_shallow_fusion_with_the_same_language_model(runs, tmp_path, model):
    """The CTC encoder, beam search and --lm: what text alone gives."""
    run = runs("llm_prompt_asr")
    run.train("--method", "ctc", "--out", tmp_path / "ctc")
    search = ["--decode", "beam", "--beam", 2, "--bonus", 0, "--lm", model("llama")]
    found = run.evaluate(tmp_path / "ctc", *search)
    assert found["lm"] == str(model("llama")) and found["beam"] == 2
    assert found["lm_weight"] in (0.2, 0.4, 0.6)


@pytest.mark.parametrize("options, message", [
    ("--stride-ms 100", "--stride-ms is a multiple of 80"),
    ("--lora-rank 8 --lr-lm 0", "--lora-rank adapts the language model"),
    ("--lora-rank 0 --lr-lm 0 --lr-encoder 0 --lr-projection 0", "nothing would learn"),
    ("--lora-rank 0 --lr-lm 0 --lr-projection 0 --freeze-encoder-steps 9", "--freeze-encoder-steps: the encoder and another part"),
    ("--lr-encoder 0 --freeze-encoder-steps 9", "--freeze-encoder-steps: the encoder and another part"),
    ("--schedule inverse-sqrt --warmup 500", "--ctc-warmup is a share below 1 for --schedule one-cycle"),
])  # fmt: skip
def test_what_cannot_be(options, message, capsys):
    with pytest.raises(SystemExit):
        read_config(options)
    assert message in capsys.readouterr().err
