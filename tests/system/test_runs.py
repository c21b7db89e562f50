"""Every script's runs: finish, repeat, stop and resume, several ranks, score, transcribe."""

import importlib
import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
import soundfile
import torch
from conftest import (
    log_without_clocks,
    run_script,
    slow_after_the_first,
    write_data,
    write_manifest,
)

from common import figures
from common.errors import UserError
from common.figures import read_log
from common.running.audio import read_audio
from common.running.corpora import Utterance
from common.running.hypotheses import read_hypotheses
from common.running.runs import SCRIPTS
from common.running.weights import load_weights

RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(params=slow_after_the_first(SCRIPTS))
def finished(request, runs):
    return runs(request.param)


def first_parts(names) -> set[str]:
    return {name.split(".")[0] for name in names}


def joined(utterances: list[Utterance], path) -> Utterance:
    """One recording of all of them, with the pauses at their ends."""
    wave = np.concatenate([read_audio(u.audio).numpy() for u in utterances])
    soundfile.write(path, wave, 16000)
    text = " ".join(u.text for u in utterances)
    return Utterance(path.stem, str(path), text, len(wave) / 16000, session="joined")


# ------------------------------------------------------------------------------------------------------------- training


def test_a_finished_run(finished):
    folder, script = finished.folder, finished.script
    files = {p.name for p in folder.iterdir()}
    assert files >= {
        "config.json",
        "log.jsonl",
        "last.pt",
        "model.safetensors",
        "tokenizer.json",
        "result.json",
    }
    assert files >= {"hyp_test.txt", "hyp_test.tsv", "loss.png"} | script.files
    # What helps in training only is needed to go on with it, and absent from what is exported.
    assert first_parts(load_weights(folder / "model.safetensors")) == script.exported
    assert first_parts(torch.load(folder / "last.pt", weights_only=True)["model"]) == script.trained
    result = json.loads((folder / "result.json").read_text())
    assert (result["script"], result["method"], result["seed"]) == (
        finished.name,
        script.methods[1],
        1,
    )
    assert (
        0 < result["wer"]["test"] <= 110
        and 0 <= result["homophone_error"]["test"] <= 100
        and result["rtf"] > 0
    )
    assert (
        result["not_scored"]
        == result["skipped_updates"]
        == result["infeasible"]
        == result["bad_files"]
        == 0
    )
    assert set(result) >= script.report and result["params"] > 0 and result["train_seconds"] > 0
    updates = [entry for entry in read_log(folder) if "loss" in entry]
    assert [entry["step"] for entry in updates] == list(range(1, len(updates) + 1)) and len(
        updates
    ) >= 30
    assert sum(entry["loss"] for entry in updates[-7:]) < 0.9 * sum(
        entry["loss"] for entry in updates[:7]
    )
    assert (folder / "hyp_test.txt").read_text().count("REF: ") == 4
    assert len((folder / "hyp_test.tsv").read_text().splitlines()) == 5


def test_the_same_seed_gives_the_same_log_whoever_reads_the_audio(finished, tmp_path):
    finished.train("--out", tmp_path, "--workers", 2)
    assert log_without_clocks(tmp_path) == log_without_clocks(finished.folder)
    weights = [
        (folder / "model.safetensors").read_bytes() for folder in (tmp_path, finished.folder)
    ]
    assert weights[0] == weights[1]


def test_another_seed_gives_another_run(finished, tmp_path):
    finished.train("--out", tmp_path, "--seed", 2, "--max-steps", 1)
    assert read_log(tmp_path)[0]["loss"] != read_log(finished.folder)[0]["loss"]


def test_stopped_and_resumed_it_ends_bit_identical(finished, tmp_path, monkeypatch):
    """Struck down inside the second epoch, stopped by SIGTERM inside the third, then to the end."""
    module = importlib.import_module(finished.name)
    compute_losses, calls = module.compute_losses, []

    def disturbed(*arguments):
        calls.append(1)
        if len(calls) == 13:
            raise MemoryError
        if len(calls) == 22:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute_losses(*arguments)

    monkeypatch.setattr(module, "compute_losses", disturbed)
    with pytest.raises(MemoryError):
        finished.train("--out", tmp_path)
    with pytest.raises(UserError, match="stopped after update 17: go on with --resume"):
        finished.train("--out", tmp_path, "--resume")
    assert not (tmp_path / "model.safetensors").exists()  # it is unfinished
    result = finished.train("--out", tmp_path, "--resume")
    assert len(calls) == 12 + 1 + 9 + (len([e for e in read_log(tmp_path) if "loss" in e]) - 17)
    assert log_without_clocks(tmp_path) == log_without_clocks(finished.folder)
    weights = [
        (folder / "model.safetensors").read_bytes() for folder in (tmp_path, finished.folder)
    ]
    assert weights[0] == weights[1]
    # What is said of the model before its training is not said of the one that went on.
    known = json.loads((finished.folder / "result.json").read_text())
    assert result.get("text_perplexity") == known.get("text_perplexity")


def test_resuming_a_finished_run_scores_it_again(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    result = finished.train("--out", tmp_path / "run", "--resume")
    assert result["wer"] == json.loads((finished.folder / "result.json").read_text())["wer"]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    with pytest.raises(UserError, match="already holds a run: add --resume"):
        finished.train("--out", tmp_path / "run")
    with pytest.raises(UserError, match=r"epochs 5 -> 7.*--resume"):
        finished.train("--out", tmp_path / "run", "--resume", "--epochs", 7)


@pytest.mark.parametrize("which", [0, 1])
def test_no_figure_loses_a_result(finished, which, tmp_path, monkeypatch, capsys):
    """They come last, and what fails in one is a sentence. The first clips of all sets cannot be read."""
    data = shutil.copytree(finished.data, tmp_path / "data")
    for name in ("train", "dev", "test"):
        (data / "empty.mp3").touch()
        path = data / f"{name}.jsonl"
        first = json.loads(path.read_text().splitlines()[0]) | {
            "audio_filepath": "empty.mp3",
            "id": "empty",
        }
        path.write_text(json.dumps(first) + "\n" + path.read_text())
    seen, out = [], tmp_path / "run"

    def fail(figure, path):
        if path.parent == out:  # not of an earlier stage
            seen.append((path.name, (out / "result.json").exists()))
        raise ValueError("a broken font")

    monkeypatch.setattr(figures, "_save", fail)
    method = finished.script.methods[which]
    result = finished.train("--out", out, "--max-steps", 2, "--method", method, data=data)
    said = capsys.readouterr()
    assert json.loads((out / "result.json").read_text()) == result and result["not_scored"] == 1
    assert said.out.splitlines()[-1] == "RESULT " + json.dumps(result)
    expected = {"loss.png"} | {
        name for name in finished.script.files if name.endswith(".png") and which
    }
    assert {name for name, _ in seen} >= expected and all(there for _, there in seen)
    for name, _ in seen:
        assert (
            said.err.count(f"{name} could not be drawn (a broken font); the results are complete.")
            >= 1
        )


# ---------------------------------------------------------------------------------------- ranks, accumulation, methods


def two_updates(folder) -> tuple[list[dict], list[torch.Tensor]]:
    """Log entries, and Adam's first moments: 0.09 times the first gradient plus 0.1 times the second."""
    state = torch.load(folder / "last.pt", weights_only=True)["optimizer"]["state"]
    return [e for e in log_without_clocks(folder) if "loss" in e], [
        s["exp_avg"] for s in state.values()
    ]


def flat(entry: dict) -> dict[str, float]:
    nested = {
        f"{name}.{k}": v for name, x in entry.items() if isinstance(x, dict) for k, v in x.items()
    }
    return nested | {name: x for name, x in entry.items() if not isinstance(x, dict)}


def test_two_ranks_and_accumulation_are_one_rank(finished, corpus, tmp_path):
    """An update of 8 utterances at once, in parts, and shared by 2 ranks; then one of a single utterance, which leaves
    a rank with nothing. For two methods side by side.
    """
    data = write_data(
        tmp_path / "data",
        [*corpus.train[:8], joined(corpus.train[8:16], tmp_path / "long.flac")],
        corpus.dev[:2],
        corpus.dev[2:5],  # an odd number
    )
    methods = finished.script.methods
    options = ["--max-steps", 2, "--update-seconds", 16, "--batch-seconds", 99, "--max-seconds", 30]
    options += finished.script.still.split()
    options = finished.options(*options, "--method", *methods, data=data, plain=True)
    whole = finished.main(*options, "--out", tmp_path / "whole")
    parts = finished.main(*options, "--out", tmp_path / "parts", "--batch-seconds", 5)
    more = [
        "--out",
        tmp_path / "ranks",
        "--root",
        tmp_path / "root",
    ]  # where nobody asked a teacher before
    code, out, error = run_script(*options, *more, script=f"{finished.name}.py", launcher=RANKS)
    assert code == 0, error
    assert (
        out.count("RESULT") == 2 and "%|" not in error
    )  # no progress bars where there is no terminal
    asked = list((tmp_path / "root").rglob("*.safetensors"))
    assert len(asked) == (
        2 if finished.name == "interaed_kd" else 0
    )  # both ranks wrote down what they asked
    for method in methods:
        entries, moments = two_updates(tmp_path / "whole" / method)
        assert [entry["utterances"] for entry in entries] == [8, 1]
        largest = max(m.abs().max() for m in moments)
        for name in ("parts", "ranks"):
            folder = tmp_path / name / method
            others, other_moments = two_updates(folder)
            assert [flat(entry) for entry in others] == [
                pytest.approx(flat(entry), rel=1e-4) for entry in entries
            ]
            assert all(
                (a - b).abs().max() <= 1e-5 * largest
                for a, b in zip(moments, other_moments, strict=True)
            )
            assert json.loads((folder / "result.json").read_text())["wer"] == whole[method]["wer"]
            # Behind the texts stand paths inside --root, which differs.
            texts = read_hypotheses(tmp_path / "whole" / method / "hyp_test.tsv")
            assert read_hypotheses(folder / "hyp_test.tsv") == texts
    assert parts.keys() == whole.keys() == set(methods)


def test_several_methods_one_after_the_other(finished, tmp_path, capsys):
    """Each in a folder of its own, one RESULT line each, side by side at the end; --resume finishes the rest."""
    methods, out = finished.script.methods, tmp_path / "both"
    both = ["--max-steps", 2, "--method", *methods, "--out", out]
    results = finished.train(*both)
    alone = finished.train("--max-steps", 2, "--method", methods[1], "--out", tmp_path / "alone")
    assert alone["wer"] == results[methods[1]]["wer"]
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert sum(line.startswith("RESULT") for line in lines) == 3 + captured.err.count(
        " first, in "
    )  # earlier stages
    assert [
        line.split()[0] for line in lines if re.match(rf"({'|'.join(methods)}) +\d", line)
    ] == list(methods)
    for method in methods:
        assert json.loads((out / method / "result.json").read_text())["method"] == method
    with pytest.raises(UserError, match="already holds a run: add --resume"):
        finished.train(*both)
    shutil.rmtree(out / methods[1])
    again = finished.train(*both, "--resume")
    assert [again[method]["wer"] for method in methods] == [
        results[method]["wer"] for method in methods
    ]
    weights = [
        (folder / "model.safetensors").read_bytes()
        for folder in (out / methods[1], tmp_path / "alone")
    ]
    assert weights[0] == weights[1]


# -------------------------------------------------------------------------------------------- scoring and transcribing


@pytest.fixture
def talkative(finished, babbling):
    return babbling(finished.name)


def transcribe(finished, capsys, *arguments) -> list[list[str]]:
    """The columns of what transcribe.py prints; standard output holds nothing else."""
    capsys.readouterr()
    finished.transcribe(*arguments)
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_scoring_a_checkpoint(finished, root):
    """On its own data as when it was trained; on other data, in a folder of its own."""
    result = finished.evaluate(finished.folder, "--root", root, "--data", "demo-smoke")
    assert set(result["wer"]) == set(result["homophone_error"]) == {"test-clean", "test-other"}
    assert (finished.folder / "score-demo-smoke" / "hyp_test-clean.txt").exists()
    again = finished.evaluate(finished.folder)
    assert again["wer"] == json.loads((finished.folder / "result.json").read_text())["wer"]
    assert not {"skipped_updates", "train_seconds"} & set(again)


def test_weights_that_do_not_fit(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        finished.evaluate(tmp_path / "run")
    weights.unlink()
    with pytest.raises(UserError, match="not finished"):
        finished.evaluate(tmp_path / "run")
    weights.write_bytes(content)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    stored["config"] |= finished.script.other
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"do not fit its config\.json"):
        finished.evaluate(tmp_path / "run")


def test_beam_search_with_a_language_model(finished, talkative, model, tmp_path, capsys):
    """Its weight and the bonus are tuned on dev; both real-time factors are in RESULT."""
    if not finished.script.beam:
        pytest.skip("it decodes greedily")
    search = [talkative, "--decode", "beam", "--beam", 2]
    plain = finished.evaluate(*search, "--bonus", 0)
    assert (
        plain["lm"] is None and plain["lm_weight"] == 0 and "dev WER" not in capsys.readouterr().err
    )
    assert (talkative / "score-data-beam" / "hyp_test.txt").read_text().count("REF: ") == 4
    lm = ["--lm", model("lm"), "--lm-weight", 0.1, 2, "--bonus", 0, 1, "--out", tmp_path]
    result = finished.evaluate(*search, *lm)
    tuned = re.findall(r"dev WER ([\d.]+) %", capsys.readouterr().err)
    assert len(tuned) == 4 and all(float(rate) > 0 for rate in tuned)
    assert (
        result["lm"] == str(model("lm"))
        and result["lm_weight"] in (0.1, 2)
        and result["bonus"] in (0, 1)
    )
    assert result["beam"] == 2 and result["rtf"] > 0 and result["greedy_rtf"] > 0
    assert (tmp_path / "hyp_test.txt").exists()


def test_transcribing_any_file(finished, talkative, corpus, tmp_path, capsys):
    """8 kHz stereo WAV, OGG, MP3, FLAC and a recording of ten minutes; standard output holds nothing but the result."""
    wave = read_audio(corpus.train[0].audio).numpy()
    paths = [tmp_path / name for name in ("a b.flac", "c.ogg", "d.mp3", "e.wav", "long.flac")]
    for path in paths[:3]:
        soundfile.write(path, wave, 16000)
    soundfile.write(paths[3], np.stack([wave[::2], wave[::2]], axis=1), 8000)
    joined((corpus.train * 4)[:280], paths[4])
    started = time.perf_counter()
    rows = transcribe(finished, capsys, talkative, *paths)
    assert time.perf_counter() - started < 60
    assert [row[0] for row in rows] == [str(path) for path in paths]
    assert all(len(row) == 2 and row[1] for row in rows), rows


def test_subtitles(finished, talkative, corpus, tmp_path, capsys):
    """Beside the file, one block per stretch of speech, in order; a file that is there is not touched."""
    talk = joined(corpus.train[:6], tmp_path / "talk.flac")
    rows = transcribe(finished, capsys, talkative, "--srt", talk.audio)
    assert rows == [[talk.audio, str(tmp_path / "talk.srt")]]
    text, before = (tmp_path / "talk.srt").read_text(), 0.0
    for i, block in enumerate(text.split("\n\n"), start=1):
        number, times, words = block.strip().split("\n")
        found = re.fullmatch(r"00:00:(\d\d),(\d{3}) --> 00:00:(\d\d),(\d{3})", times).groups()
        start, end = int(found[0]) + int(found[1]) / 1000, int(found[2]) + int(found[3]) / 1000
        assert (
            number == str(i)
            and words
            and before <= start < end <= min(start + 6.1, talk.duration + 0.1)
        )
        before = end
    assert i >= 2
    with pytest.raises(UserError, match="1 of 1 files"):
        finished.transcribe(talkative, "--srt", talk.audio)
    assert (tmp_path / "talk.srt").read_text() == text


@pytest.mark.parametrize(
    "search", [[], ["--decode", "beam", "--beam", "3", "--bonus", "0"]], ids=["greedy", "beam"]
)
def test_word_times_and_unreadable_files(finished, talkative, corpus, tmp_path, capsys, search):
    if not finished.script.times:
        pytest.skip("it gives no word times")
    if search and not finished.script.beam:
        pytest.skip("it decodes greedily")
    utterances = {u.audio: u for u in corpus.train[:8]}
    texts = dict(transcribe(finished, capsys, talkative, *utterances, *search))
    (tmp_path / "broken.flac").write_bytes(b"x")
    with pytest.raises(UserError, match="1 of 9 files could not be read"):
        finished.transcribe(talkative, tmp_path / "broken.flac", *utterances, *search, "--times")
    captured = capsys.readouterr()
    assert "broken.flac cannot be read" in captured.err and "broken" not in captured.out
    timed: dict[str, list] = {path: [] for path in utterances}
    for path, start, end, word in (line.split("\t") for line in captured.out.splitlines()):
        timed[path].append((float(start), float(end), word))
    assert list(texts) == list(utterances) and any(texts.values())
    for path, words in timed.items():
        assert [word for *_, word in words] == texts[path].split()
        assert [start for start, *_ in words] == sorted(start for start, *_ in words)
        assert all(0 <= start < end <= utterances[path].duration + 0.1 for start, end, _ in words)


def test_long_recordings_are_cut_in_scoring_as_in_transcribing(
    finished, talkative, corpus, tmp_path, capsys
):
    long = joined(corpus.train[:50], tmp_path / "long.flac")
    assert long.duration > 90
    data = tmp_path / "data"
    data.mkdir()
    write_manifest(data / "test.jsonl", [*corpus.dev[:2], long])
    cut = [talkative, "--cut-seconds", 5]
    finished.evaluate(*cut, "--data", data, "--out", tmp_path)
    scored = {
        row[0]: row[2]
        for row in (x.split("\t") for x in (tmp_path / "hyp_test.tsv").read_text().splitlines())
    }
    ((_, text),) = transcribe(finished, capsys, talkative, long.audio, "--cut-seconds", 5)
    assert text == scored["long"] and len(text.split()) > 3
    ((_, whole),) = transcribe(finished, capsys, talkative, long.audio, "--cut-seconds", 200)
    assert whole != text
