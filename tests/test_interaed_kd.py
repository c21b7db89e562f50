"""interaed_kd.py: its equations in plain Python, and its runs as users run them."""

import json
import os
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
from conftest import REPOSITORY, copy_corpus, run_script, write_manifest
from test_ctc import enumerate_paths

import interaed_kd as script
from common import run
from common.corpora import MicroBatch, Utterance
from common.features import read_audio
from common.flags import UserError

CPU = run.Place(0, 1, torch.device("cpu"), None)
SMALL = ["--dim", "32", "--heads", "2", "--ff-dim", "64", "--channels", "4", "--average", "2"]
SMALL += ["--update-seconds", "6", "--epochs", "6"]


@pytest.fixture(scope="session")
def options(root) -> list[str]:
    """Options of a tiny run that need no network: add --data and --out."""
    return ["--preset", "smoke", "--root", str(root), "--teacher", str(root / "demo-smoke" / "bert-a"), *SMALL]


@pytest.fixture(scope="session")
def finished(options, corpus, tmp_path_factory) -> Path:
    """A finished run of a tiny model on tiny data, and the data beside it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "data").mkdir()
    for name, utterances in (("train", corpus.train[:24]), ("dev", corpus.dev[:6]), ("test", corpus.dev[6:12])):
        write_manifest(folder / "data" / f"{name}.jsonl", utterances)
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


def log_without_clocks(folder: Path) -> list[dict]:
    return [{k: v for k, v in entry.items() if k != "clock"} for entry in run.read_log(folder)]


# ------------------------------------------------------------------------------------------------------- equations


def test_total_loss_is_the_formula():
    taps, last = [3.0, 5.0], 7.0
    for lam, w in [(1.0, 0.0), (1.0, 0.66), (0.3, 0.5)]:
        expected = lam * ((1 - w) * last + w * (taps[0] + taps[1]) / 2)
        losses = [torch.tensor(x) for x in [*taps, last]]
        assert script.total_loss(losses, script.Weights(lam, w)).item() == pytest.approx(expected)
    assert script.total_loss([torch.tensor(last)], script.METHODS["ctc"]) == last


@pytest.fixture
def small_model():
    torch.manual_seed(0)
    config = script.parse(
        script.Config, script.PRESETS, script.__doc__, ["--preset", "smoke", *SMALL, "--method", "interctc"]
    )
    config = replace(config, layers=3, taps=(1, 2), frequency_masks=0, time_masks=0, dropout=0.0)
    return config, script.Recogniser(config, vocabulary=3)


def make_batch(waves: list[torch.Tensor], targets: list[list[int]]) -> script.Batch:
    pad = torch.nn.utils.rnn.pad_sequence
    return script.Batch(
        pad(waves, batch_first=True), torch.tensor([len(w) for w in waves]),
        pad([torch.tensor(t) for t in targets], batch_first=True), torch.tensor([len(t) for t in targets]),
        [Utterance(str(i), "", "", 1.0) for i in range(len(waves))], {}, 0, MicroBatch([]),
    )  # fmt: skip


def test_loss_of_the_model_against_all_paths(small_model):
    """ctc_l and loss of the equation map, recomputed by enumerating every path of a short utterance at every layer."""
    config, model = small_model
    model.eval()
    batch = make_batch([torch.randn(6500), torch.randn(5500)], [[1, 2], [2]])  # 4 and 3 frames
    log_probs, lengths = model(batch.waves, batch.samples)
    assert lengths.tolist() == [4, 3] and len(log_probs) == 3
    expected = 0.0
    for i, target in enumerate([[1, 2], [2]]):
        first, second, last = (enumerate_paths(lp[i, : lengths[i]].double(), target) for lp in log_probs)
        expected += 1.0 * ((1 - 0.66) * last + 0.66 * (first + second) / 2)
    loss = script.compute_losses(model, batch, script.METHODS["interctc"], None)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_taps_loss_teaches_the_layers_at_and_below_it(small_model):
    _, model = small_model
    batch = make_batch([torch.randn(9000)], [[1, 2]])
    log_probs, lengths = model(batch.waves, batch.samples)
    script.ctc.ctc_loss(log_probs[0], lengths, batch.targets, batch.target_lengths).sum().backward()
    first, second, third = model.encoder.blocks
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in first.parameters())
    assert all(p.grad is None for block in (second, third) for p in block.parameters())


def test_alone_is_as_in_a_padded_batch(small_model, corpus):
    """Loss, hypothesis and length of an utterance do not depend on its neighbours."""
    _, model = small_model
    model.eval()
    with torch.no_grad():
        model.ctc_head.bias[0] = -1.0  # an untrained model would write blanks only
    waves = [read_audio(u.audio) for u in corpus.train[:4]]
    targets = [[1, 2, 1], [2], [1, 1], [2, 1]]
    together = make_batch(waves, targets)
    paths, _ = script.recognise(model, together.waves, together.samples, CPU)
    assert any(paths)
    alone_sum = 0.0
    for wave, target, path in zip(waves, targets, paths, strict=True):
        alone = make_batch([wave], [target])
        assert script.recognise(model, alone.waves, alone.samples, CPU)[0] == [path]
        alone_sum += script.compute_losses(model, alone, script.METHODS["interctc"], None).item()
    summed = script.compute_losses(model, together, script.METHODS["interctc"], None).item()
    assert summed == pytest.approx(alone_sum, rel=1e-5)


def test_both_rows_export_the_same_model():
    read = lambda method: script.parse(script.Config, script.PRESETS, script.__doc__, ["--method", method])  # noqa: E731
    parts = [run.parameters_by_part(script.Recogniser(read(method), 50)) for method in script.METHODS]
    assert all(part == parts[0] for part in parts)


# ----------------------------------------------------------------------------------------------------- a whole run


def test_a_finished_run(finished):
    folder = finished / "run"
    files = {p.name for p in folder.iterdir()}
    assert files >= {"config.json", "log.jsonl", "last.pt", "model.safetensors", "tokenizer.json", "result.json"}
    assert files >= {"hyp_test.txt", "loss.png", "posteriors.png"}
    result = json.loads((folder / "result.json").read_text())
    assert result["method"] == "ctc" and 0 < result["wer"]["test"] <= 110 and result["rtf"] > 0
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


def start_run(arguments, cwd, **options) -> subprocess.Popen:
    command = [sys.executable, str(REPOSITORY / "interaed_kd.py"), *arguments]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options
    )


def wait_for_log(folder: Path, lines: int, process: subprocess.Popen) -> None:
    log = folder / "log.jsonl"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= lines):
        time.sleep(0.002)


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


def first_update(folder: Path) -> tuple[dict, list[torch.Tensor]]:
    """Log entry and gradients of a one-update run: Adam's first moment is then 0.1 times the clipped gradient."""
    state = torch.load(folder / "last.pt", weights_only=True)["optimizer"]["state"]
    return run.read_log(folder)[0], [s["exp_avg"] for s in state.values()]


@pytest.mark.parametrize("method", ["ctc", "interctc"])
def test_two_ranks_and_accumulation_are_one_rank(finished, options, tmp_path, method):
    """The same update of about 8 utterances: at once; 4 micro-batches of 2; shared by 2 ranks. Scores counted once."""
    common = [*options, "--data", str(finished / "data"), "--method", method, "--max-steps", "1", "--dropout", "0"]
    common += ["--frequency-masks", "0", "--time-masks", "0", "--update-seconds", "20", "--seed", "5"]
    whole = script.main([*common, "--out", str(tmp_path / "whole")])
    parts = script.main([*common, "--out", str(tmp_path / "parts"), "--batch-seconds", "5"])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(REPOSITORY / "interaed_kd.py"), *common, "--out", str(tmp_path / "ranks")]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("RESULT") == 1
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
