"""Runs as users meet them: killed, stopped, refused, on corpora as they are. One script and its cheapest method."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from conftest import log_without_clocks, run_script, start_script, wait_for_log

from common.errors import UserError


@pytest.fixture(scope="session")
def finished(runs):
    run = runs("interaed_kd")
    return run._replace(plain=[*run.plain, "--method", run.script.methods[0]])


@pytest.fixture(scope="session")
def whole(finished, tmp_path_factory) -> Path:
    """An uninterrupted run of the cheapest method."""
    folder = tmp_path_factory.mktemp("whole")
    finished.train("--out", folder)
    return folder


@pytest.fixture
def data(finished, tmp_path) -> Path:
    """Manifests that a test may damage."""
    return shutil.copytree(finished.data, tmp_path / "data")


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, entries: list[dict]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def cut_audio(entry: dict, target: Path) -> dict:
    """The entry with a file of which the end is missing."""
    target.write_bytes(Path(entry["audio_filepath"]).read_bytes()[:9000])
    return entry | {"audio_filepath": str(target)}


def one_sentence(error: str) -> bool:
    return error.startswith("error: ") and len(error.strip().splitlines()) == 1


# --------------------------------------------------------------------------------------------------- killed and stopped


@pytest.mark.slow
def test_killed_at_several_moments_and_resumed_it_ends_bit_identical(finished, whole, tmp_path):
    """kill -9 before the first checkpoint, and between two; then SIGTERM; then to the end. Meanwhile nobody else trains
    in that folder, and a killed run leaves no lock.
    """
    folder = tmp_path / "run"
    options = finished.options("--out", folder)
    for moment, (lines, how) in enumerate(
        [(3, signal.SIGKILL), (17, signal.SIGKILL), (25, signal.SIGTERM)]
    ):
        process = start_script(*options, *(["--resume"] if moment else []))
        wait_for_log(folder, lines, process)
        if not moment:
            process.send_signal(signal.SIGSTOP)
            with pytest.raises(UserError, match="another process is training in"):
                finished.main(*options)
        process.send_signal(how)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == (1 if how == signal.SIGTERM else -how), error
        assert (how == signal.SIGTERM) == (f"go on with --resume --out {folder}" in error)
        assert not (folder / "model.safetensors").exists()  # it is unfinished
        (folder / ".last.pt.1.partial").write_bytes(b"half a checkpoint")
    finished.main(*options, "--resume")
    assert log_without_clocks(folder) == log_without_clocks(whole)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not list(folder.glob(".*.partial"))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_to_the_whole_process_group_spares_the_reading_processes(finished, tmp_path, how):
    """As batch systems stop a job, and terminals: everyone gets the signal, and the run still writes its checkpoint."""
    process = start_script(*finished.options("--out", tmp_path, "--workers", 2))
    wait_for_log(tmp_path, 3, process)
    os.killpg(process.pid, how)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and one_sentence(error) and "go on with --resume" in error, error
    assert (tmp_path / "last.pt").exists()


def test_nobody_reads_on(babbling, corpus):
    """python transcribe.py RUN … | head -1"""
    files = [u.audio for u in corpus.train[:50]]
    process = start_script(babbling("interaed_kd"), *files, script="transcribe.py")
    assert process.stdout.readline().startswith(files[0])
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) != 0


# ------------------------------------------------------------------------------------------------------ what is refused


def test_exit_codes_and_one_sentence(finished, tmp_path):
    (tmp_path / "file").touch()
    cases = [
        (1, ["--data", "nowhere"], "--data nowhere: no such folder"),
        (1, ["--data", "librispeech", "--root", tmp_path], "--root names the folder"),
        (1, ["--resume", "--out", tmp_path], "holds no run"),
        (1, ["--data", "nowhere", "--out", tmp_path / "file"], "choose another folder"),  # found before data are read
        (1, ["--data", "nowhere", "--out", "/proc/run"], "choose another folder"),
        (1, ["--resume", "--out", finished.folder, "--seed", 9], "--seed 1 -> 9"),
        (2, ["--epochs", 0], "--epochs must be at least 1"),
    ]  # fmt: skip
    processes = [start_script(*arguments, cwd=tmp_path) for _, arguments, _ in cases]
    for process, (code, arguments, message) in zip(processes, cases, strict=True):
        out, error = process.communicate(timeout=120)
        assert (
            (process.returncode, out) == (code, "")
            and message in error
            and "Traceback" not in error
        ), error
        assert one_sentence(error) if code == 1 else len(error.splitlines()) < 10, arguments


def test_a_hub_model_without_network(finished, tmp_path):
    options = finished.options(
        "--method", "aed_kd", "--teacher", "bert-base-uncased", "--out", tmp_path / "run"
    )
    started = time.perf_counter()
    code, _, error = run_script(
        *options, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path), cwd=tmp_path
    )
    assert (
        code == 1
        and "--teacher bert-base-uncased is not in the local cache" in error
        and "local folder" in error
    )
    assert "Traceback" not in error and time.perf_counter() - started < 25


def test_a_start_that_failed_does_not_block_the_folder(finished, tmp_path):
    options = finished.options("--out", tmp_path / "run", "--max-steps", 1)
    with pytest.raises(UserError, match="holds no tokenizer"):
        finished.main(*options, "--teacher", tmp_path)
    finished.main(*options)


def test_a_corpus_that_changed_is_not_resumed(finished, data, tmp_path):
    """One utterance fewer; or as many, and whose transcripts are those of others."""
    options = finished.options("--out", tmp_path / "run", "--max-steps", 2, data=data)
    finished.main(*options)
    entries = lines_of(data / "train.jsonl")
    write_lines(data / "train.jsonl", entries[:-1])
    with pytest.raises(UserError, match="trained on 24 utterances, and --data now has 23"):
        finished.main(*options, "--resume")
    texts = [entry["text"] for entry in entries]
    write_lines(
        data / "train.jsonl",
        [e | {"text": text} for e, text in zip(entries, texts[::-1], strict=True)],
    )
    with pytest.raises(
        UserError, match="trained on 24 utterances, and --data now has as many, but others"
    ):
        finished.main(*options, "--resume")


# ------------------------------------------------------------------------------------------------------ damaged corpora


def test_a_damaged_corpus_in_librispeech_layout(finished, root, tmp_path, capsys):
    """Upper case, apostrophes, words never seen, a cut FLAC, an empty one, one missing, too long transcripts."""
    for name in ("train-000", "dev-clean", "test-clean", "homophones.txt"):
        source, target = root / "demo-smoke" / "LibriSpeech" / name, tmp_path / "LibriSpeech" / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    transcripts = sorted((tmp_path / "LibriSpeech" / "train-000").glob("*/*/*.trans.txt"))
    lines = transcripts[0].read_text().splitlines()
    names = [line.split()[0] for line in lines]
    audio = {name: transcripts[0].parent / f"{name}.flac" for name in names}
    lines[0] = f"{names[0]} 'TWASN'T THE KINGS' ZEPPELIN"
    lines[1] = (
        f"{names[1]} " + "A " * 30
    )  # a label per frame would do, but not one between equal ones
    transcripts[0].write_text("\n".join(lines) + "\n")
    audio[names[2]].write_bytes(audio[names[2]].read_bytes()[:9000])
    audio[names[3]].write_bytes(b"")
    next(iter(transcripts[1].parent.glob("*.flac"))).unlink()
    more = ["--root", tmp_path, "--out", tmp_path / "run", "--epochs", 2, "--update-seconds", 30]
    result = finished.train(*more, data="librispeech")
    error = capsys.readouterr().err
    assert "left out 2 of 100" in error and "no such file" in error and "no audio file" in error
    assert error.count(f"{names[2]}.flac cannot be read") == 1  # named once, then remembered
    assert result["bad_files"] == 1 and result["infeasible"] == 2  # the latter at both passes
    assert set(result["wer"]) == set(result["homophone_error"]) == {"test-clean"}
    assert result["skipped_updates"] == 0


def test_too_many_damaged_files_stop_the_run(finished, data, tmp_path):
    entries = lines_of(data / "train.jsonl")
    cut = [cut_audio(entry, tmp_path / f"cut{i}.flac") for i, entry in enumerate(entries[:11])]
    write_lines(data / "train.jsonl", cut + entries[11:])
    with pytest.raises(
        UserError, match=r"11 of 24 utterances cannot be read(.|\n)*cut10.flac cannot be read"
    ):
        finished.train("--out", tmp_path / "run", data=data)


@pytest.mark.parametrize("count", [1, 2])
def test_small_test_sets(finished, data, tmp_path, count):
    write_lines(data / "test.jsonl", lines_of(data / "test.jsonl")[:count])
    result = finished.train("--out", tmp_path / "run", "--max-steps", 1, data=data)
    assert result["rtf"] > 0 and result["not_scored"] == 0


def test_unreadable_audio_is_not_scored_but_counted(finished, data, tmp_path, capsys):
    """Found when it is read, or missing from the start."""
    first, second, *others = lines_of(data / "test.jsonl")
    second["audio_filepath"] = str(tmp_path / "nowhere.flac")
    del second["duration"]
    write_lines(data / "test.jsonl", [cut_audio(first, tmp_path / "cut.flac"), second, *others])
    score = [finished.folder, "--data", data, "--out", tmp_path / "score"]
    result = finished.evaluate(*score)
    assert result["not_scored"] == 2 and "not scored: " in capsys.readouterr().err
    assert len((tmp_path / "score" / "hyp_test.tsv").read_text().splitlines()) == 1 + 2
    write_lines(data / "test.jsonl", [cut_audio(first, tmp_path / "cut.flac")])
    with pytest.raises(UserError, match="none of the 1 utterances of test could be scored"):
        finished.evaluate(*score)


@pytest.mark.parametrize("name", ["train", "dev", "test"])
def test_nothing_to_learn_from(finished, data, tmp_path, name):
    (data / f"{name}.jsonl").write_text("")
    with pytest.raises(UserError, match="nothing to learn from or to check it on"):
        finished.train("--out", tmp_path / "run", data=data)


def test_nothing_short_enough_or_readable(finished, data, tmp_path):
    with pytest.raises(UserError, match="--max-seconds 0.1"):
        finished.train("--out", tmp_path / "short", "--max-seconds", 0.1, data=data)
    entries = lines_of(data / "dev.jsonl")
    write_lines(
        data / "dev.jsonl", [cut_audio(e, tmp_path / f"{i}.flac") for i, e in enumerate(entries)]
    )
    with pytest.raises(UserError, match="none of the 4 dev utterances could be read"):
        finished.train("--out", tmp_path / "run", "--max-steps", 1, data=data)
