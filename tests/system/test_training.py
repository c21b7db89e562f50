"""The books of a training run: what an update averages, what is written down, and what a stop or a kill leaves."""

import gc
import math
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from test_files import largest_file
from torch import nn
from toy import CPU, Toy, signal_at

from common.errors import UserError
from common.figures import read_log
from common.running import evaluation, training, updates
from common.running.schedules import inverse_sqrt, learning_rate, one_cycle
from common.running.weights import load_recogniser, load_weights


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The log and the product of an uninterrupted run, and the folder with its audio."""
    toy = Toy(tmp_path_factory.mktemp("whole"))
    toy.train()
    return toy


# --------------------------------------------------------------------------------------------------- learning rates


def test_learning_rates():
    assert [one_cycle(s, 0.25) for s in (0, 0.125, 0.25, 1)] == pytest.approx([0, 0.5, 1, 0])
    assert one_cycle(0.625, 0.25) == pytest.approx(0.5)
    assert [inverse_sqrt(s - 1, 100) for s in (1, 50, 100, 400)] == pytest.approx(
        [0.01, 0.5, 1, 0.5]
    )
    assert (
        learning_rate("one-cycle", 0.3, 0, 10) > 0 and learning_rate("one-cycle", 0.3, 9, 10) == 0
    )
    assert learning_rate("inverse-sqrt", 100, 399, 10) == pytest.approx(0.5)


def test_one_cycle_is_smooth():
    rates = [one_cycle(i / 1000, 0.3) for i in range(1001)]
    assert max(abs(b - a) for a, b in zip(rates, rates[1:], strict=False)) < 0.01 and not any(
        map(math.isnan, rates)
    )


def test_rates_by_part_keep_their_ratio_and_their_peak_after_resuming(toy):
    """The peaks are the script's, not the decayed rates that a checkpoint's optimiser brings."""
    sides = []

    def look(update):
        sides.append(
            [group["lr"] for group in toy.optimizer.param_groups]
        )  # as the update before left them
        signal_at(6)(update)

    toy.each_update = look
    with pytest.raises(UserError, match="stopped after update 6"):
        toy.train(max_steps=8)
    toy.train(max_steps=8, resume=True)
    lr = {entry["step"]: entry["lr"] for entry in read_log(toy.out) if "lr" in entry}
    assert lr == {step: pytest.approx(0.1 * one_cycle(step / 8, 0.5)) for step in range(1, 9)}
    assert all(side == pytest.approx(0.1 * main) for main, side in sides) and len(sides) == 8


def test_a_warm_up_longer_than_the_run_is_said(toy, capsys):
    toy.train(schedule="inverse-sqrt", warmup=2)
    assert "--warmup" not in capsys.readouterr().err
    toy.train(schedule="inverse-sqrt", warmup=1000)
    assert "updates, --warmup 1000: the learning rate rises to" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- gradients


def test_gradients_are_sums_divided_by_the_utterances_of_the_update():
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    for _ in range(4):
        (used * 6).sum().backward()
    updates.average_gradients([used, unused], 8, CPU)
    assert used.grad.tolist() == [3, 3, 3] and unused.grad is None
    updates.average_gradients([unused], 0, CPU)
    assert unused.grad is None


def test_what_no_utterance_used_is_not_moved(toy):
    """Though the optimiser has momentum for it from earlier updates, and decay."""
    rare = []
    toy.each_update = lambda update: rare.append(toy.models["recogniser"].rare.tolist())
    toy.train()
    used = ["u5" in entry["parts"] for entry in toy.log() if "parts" in entry]
    moved = [before != after for before, after in zip(rare, rare[1:], strict=False)]
    assert sum(used) == 3 and moved == used[:-1] and not used[-1]


def test_frozen_parts_are_left_alone(toy):
    found = []

    def look(update):
        frozen = toy.models["frozen"]
        found.append([part.training for part in toy.models.values()])
        assert all(p.grad is None for p in frozen.parameters())
        assert not {id(p) for p in frozen.parameters()} & {id(p) for p in toy.run.trainable}

    toy.each_update = look
    toy.train()
    assert found and all(training == [True, True, False] for training in found)


def test_accumulation_is_one_batch(toy, whole):
    toy.train(batch_seconds=0.2)
    assert len(toy.log()) == len(whole.log())
    for ours, other in zip(toy.log()[:3], whole.log(), strict=False):
        assert ours["utterances"] == other["utterances"]
        assert ours["loss"] == pytest.approx(
            other["loss"], rel=0.02
        )  # but for the toy's randomness


def test_what_the_log_says(whole):
    """Losses are means over the utterances of an update; what was too short is not among them."""
    updates, epochs = ([e for e in whole.log() if key in e] for key in ("loss", "dev"))
    assert [e["step"] for e in updates] == list(range(1, len(updates) + 1)) and len(epochs) == 3
    assert [(e["epoch"], e["step"], e["dev"]) for e in epochs] == [
        (1, 5, 30.0),
        (2, 9, 50.0),
        (3, 13, 40.0),
    ]
    assert sum(e["utterances"] for e in updates) == 3 * 11  # u11 has too many labels
    for entry in updates:
        assert sum(entry["parts"].values()) == pytest.approx(entry["loss"])
        assert entry["utterances"] == len(entry["parts"]) and entry["norm"] > 0
    assert all("seconds" in entry["clock"] for entry in read_log(whole.out) if "loss" in entry)


def test_what_is_reported(toy):
    report = toy.train()
    assert (report["skipped_updates"], report["infeasible"], report["bad_files"]) == (0, 3, 0)
    assert report["train_seconds"] >= 0 and report["audio_seconds_per_second"] > 0


def test_max_steps_end_a_run_anywhere(toy):
    for steps in (1, 5, 7):
        toy.out = toy.folder / str(steps)
        toy.out.mkdir()
        toy.train(max_steps=steps, out=str(toy.out))
        log = toy.log()
        assert [e["step"] for e in log if "loss" in e] == list(
            range(1, steps + 1)
        ) and "dev" in log[-1]
        assert log[-2]["lr"] == 0  # the schedule is as long


# ------------------------------------------------------------------------------------------ how it must not be used


def test_updates_that_were_not_used_up(toy):
    """Each would put every later update out of step with what the books say of it."""

    def not_iterated(update):
        update.average_gradients()

    def left_early(update):
        for _ in update:
            break
        update.average_gradients()

    def not_averaged(update):
        for batch in update:
            toy.loss(batch).backward()

    for misuse, match in (
        (not_iterated, "iterate"),
        (left_early, "iterate"),
        (not_averaged, "average_gradients"),
    ):
        run = toy.build(batch_seconds=0.2)
        with pytest.raises(RuntimeError, match=match):
            for _ in run.epochs():
                for update in run.updates():
                    misuse(update)
        assert not (toy.out / "last.pt").exists()


def test_epochs_that_were_not_ended(toy):
    run = toy.build()
    with pytest.raises(RuntimeError, match="end_epoch"):
        for _ in run.epochs():
            for update in run.updates():
                toy.update(update)


# --------------------------------------------------------------------------------------------- updates left out


def test_updates_without_a_finite_gradient(toy):
    """Are skipped, counted and survived; 20 in a row, or nothing else, end the run."""
    toy.each_update = lambda update: setattr(
        toy, "scale", math.nan if update.step in (2, 3) else 1.0
    )
    assert toy.train()["skipped_updates"] == 2
    assert all(w.isfinite().all() for w in load_weights(toy.out / "model.safetensors").values())
    log = [e for e in toy.log() if "loss" in e]
    assert [e["step"] for e in log if math.isnan(e["loss"])] == [2, 3]


def test_twenty_skipped_updates_in_a_row_end_a_run(toy):
    toy.each_update = lambda update: setattr(toy, "scale", math.nan if update.step > 3 else 1.0)
    with pytest.raises(UserError, match="20 of 23 updates had no finite gradient"):
        toy.train(epochs=20)


def test_a_run_that_learnt_nothing_does_not_end_well(toy):
    toy.scale = math.inf
    with pytest.raises(UserError, match="nothing was learnt"):
        toy.train(max_steps=3)
    assert not (toy.out / "model.safetensors").exists()


def test_channels_that_cancel_each_other_are_counted_at_every_pass_and_said_once(toy, capsys):
    path = toy.folder / "0.wav"
    wave, rate = soundfile.read(path)
    wave[::2] *= -1  # a constant level has no power
    soundfile.write(path, np.stack([wave, -wave], axis=1), rate)
    report = toy.train(epochs=3)
    assert report["cancelling_channels"] == 3 and report["bad_files"] == 0
    assert capsys.readouterr().err.count("0.wav: its channels cancel each other") == 1


def test_updates_that_hold_nothing(toy):
    """Every utterance of an update may be too short or unreadable."""
    for path in [toy.folder / f"{i}.wav" for i in range(4)]:
        path.write_bytes(b"no audio")
    report = toy.train(update_seconds=0.1)
    assert report["bad_files"] == 4 and report["skipped_updates"] >= 4
    empty = [e for e in toy.log() if e.get("utterances") == 0]
    assert len(empty) == report["skipped_updates"] and all(e["loss"] == 0 for e in empty)


# ------------------------------------------------------------------------------------------------ weights and averages


def test_average_of_the_best_epochs(toy):
    """Of equal ones the later; the others are deleted."""
    run, stages = toy.build(epochs=5), []
    recogniser = toy.models["recogniser"]
    for error, weight in [(50.0, 1.0), (30.0, 2.0), (30.0, 9.0), (30.0, 4.0), (60.0, 7.0)]:
        next(run.epochs())
        for update in run.updates():
            toy.update(update)
        nn.init.constant_(recogniser.weight, weight)
        run.end_epoch(recogniser, {"dev": error})
        stages.append([int(p.stem) for p in sorted((toy.out / "epochs").iterdir())])
    assert stages == [[1], [1, 2], [2, 3], [3, 4], [3, 4]]
    run.finish(recogniser)
    assert recogniser.weight.tolist() == [6.5] * 3 and not recogniser.training
    assert load_weights(toy.out / "model.safetensors")["weight"].tolist() == [6.5] * 3
    assert load_weights(toy.out / "model.safetensors").keys() == {"weight", "rare", "mean"}


def test_parameters_by_part(capsys):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    assert evaluation.parameters_by_part(model) == {"0": 9, "1": 4, "total": 13}
    models = nn.ModuleDict({"recogniser": model, "heads": nn.Linear(999, 1)})
    assert evaluation.print_parameters(models)["total"] == 13
    out = capsys.readouterr().out
    assert "total" in out and "and 1,000 in the heads, for training only" in out


@pytest.mark.parametrize("content", [b"", b"rubbish", bytes(range(256)) * 9, None])
def test_damaged_files_are_one_sentence(toy, content):
    toy.train(max_steps=2)
    for name, match in (
        ("last.pt", r"last\.pt cannot be resumed"),
        ("model.safetensors", "is damaged"),
    ):
        path = toy.out / name
        path.write_bytes(
            path.read_bytes()[: path.stat().st_size // 2] if content is None else content
        )
        with pytest.raises(UserError, match=match):
            toy.build(max_steps=2, resume=True) if name == "last.pt" else load_weights(path)


def test_weights_that_are_missing_or_of_another_model(toy, tmp_path):
    with pytest.raises(UserError, match="not finished, go on with it by --resume"):
        load_recogniser(nn.Linear(1, 1), tmp_path, CPU)
    toy.train(max_steps=1)
    with pytest.raises(UserError, match=r"do not fit its config\.json"):
        load_recogniser(nn.Linear(1, 1), toy.out, CPU)


# ------------------------------------------------------------------------------------------------ stopped and killed


class Killed(BaseException):
    pass


@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_moment_and_resumed_it_ends_bit_identical(toy, whole, monkeypatch, before):
    """Before or after the n-th time that a file takes the place of another: between, the disk holds what it held."""
    replace_file, countdown = os.replace, []

    def counted(*paths):
        countdown.pop()
        if not countdown and before:
            raise Killed
        replace_file(*paths)
        if not countdown:
            raise Killed

    for moment in range(1, 99):
        shutil.rmtree(toy.out)
        toy.out.mkdir()
        countdown[:] = [None] * moment
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted)
            try:
                toy.train(save_steps=2)
                break
            except Killed:
                pass
        with open(toy.out / "log.jsonl", "a") as log:
            log.write('{"step": 99, "lo')  # a line of which a kill left a part
        toy.train(resume=True)
        assert toy.log() == whole.log() and toy.product() == whole.product(), moment
    assert moment > 12


def test_stopped_after_any_update_and_resumed(toy, whole):
    """Also after the last of an epoch, which then comes again without updates; and by Ctrl-C."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for step in range(1, 14):
        toy.each_update = signal_at(step, signal.SIGTERM if step % 2 else signal.SIGINT)
        with pytest.raises(
            UserError, match=f"stopped after update {step}: go on with --resume --out {toy.out}"
        ):
            toy.train(resume=step > 1)
        assert torch.load(toy.out / "last.pt", weights_only=True)["progress"]["step"] == step
    updates = []
    toy.each_update = updates.append
    toy.train(resume=True)
    assert not updates and toy.log() == whole.log() and toy.product() == whole.product()
    gc.collect()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    toy.train(resume=True)  # a finished run changes nothing
    assert not updates and toy.log() == whole.log() and toy.product() == whole.product()


def test_a_second_ctrl_c_stops_at_once(toy):
    def twice(update):
        signal_at(3, signal.SIGINT)(update)
        signal_at(3, signal.SIGINT)(update)

    toy.each_update = twice
    with pytest.raises(KeyboardInterrupt):
        toy.train()
    assert not (toy.out / "last.pt").exists()


def test_an_exception_in_the_loop_saves_nothing(toy):
    """And ends the processes that read: they ignore SIGTERM, and the run would wait for them for ever."""

    def fail(update):
        if update.step == 7:
            assert len(multiprocessing.active_children()) == min(2, len(os.sched_getaffinity(0)))
            raise ValueError("in the loop's body")

    toy.each_update = fail
    with pytest.raises(ValueError, match="in the loop's body") as error:
        toy.train(workers=2)
    assert not multiprocessing.active_children() and error.tb
    assert (
        torch.load(toy.out / "last.pt", weights_only=True)["progress"]["step"] == 5
    )  # the end of the first epoch
    assert len(toy.log()) == 7


def test_how_often_checkpoints_are_written(toy):
    seen = []

    def look(update):
        path = toy.out / "last.pt"
        seen.append(torch.load(path, weights_only=True)["progress"]["step"] if path.exists() else 0)

    toy.each_update = look
    toy.train(save_steps=3)
    assert seen == [
        0,
        0,
        0,
        3,
        3,
        5,
        6,
        6,
        6,
        9,
        9,
        9,
        12,
    ]  # and at the end of epochs, after 5 and 9 updates


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda us: us[:-1], "trained on 12 utterances, and --data now has 11"),
        (lambda us: [*us[1:], us[0]], "as many, but others"),  # in another order
        (
            lambda us: [replace(u, text=v.text) for u, v in zip(us, us[::-1], strict=True)],
            "as many, but others",
        ),
        (lambda us: [replace(us[0], duration=0.05), *us[1:]], "as many, but others"),
    ],
)
def test_other_utterances_are_not_resumed(toy, change, match):
    toy.train(max_steps=2)
    before = (toy.out / "last.pt").read_bytes()
    utterances, toy.utterances = toy.utterances, change(toy.utterances)
    with pytest.raises(UserError, match=match):
        toy.train(max_steps=2, resume=True)
    assert (toy.out / "last.pt").read_bytes() == before
    toy.utterances = [replace(u, audio=u.audio.replace("/0.wav", "/./0.wav")) for u in utterances]
    toy.train(max_steps=2, resume=True)  # the folder may be another


# -------------------------------------------------------------------------------------------------------- full disks


def test_a_full_disk_while_a_checkpoint_is_written(toy, whole):
    """One sentence, the last checkpoint is whole, nothing lies about; with more space it goes on."""

    with ExitStack() as stack:
        toy.each_update = lambda update: (
            stack.enter_context(largest_file(3000)) if update.step == 4 else None
        )
        with pytest.raises(UserError, match=r"last\.pt cannot be written .*free some space"):
            toy.train(save_steps=2)
    toy.each_update = lambda update: None
    assert torch.load(toy.out / "last.pt", weights_only=True)["progress"]["step"] == 2
    assert not list(toy.out.glob(".*"))
    toy.train(resume=True)
    assert toy.log() == whole.log() and toy.product() == whole.product()


def test_a_full_disk_while_the_log_is_written(toy):
    (toy.out / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(
        UserError, match=r"log\.jsonl cannot be written \(No space left on device\).*--resume"
    ):
        toy.train()
    assert not (toy.out / "last.pt").exists()


# ------------------------------------------------------------------------------------------------------------ two ranks


def test_two_ranks(tmp_path, whole):
    """The log of one rank, though one has nothing in some updates; and what one hears, all are told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
        }
    command = [sys.executable, str(Path(__file__).parent / "toy.py"), str(tmp_path)]
    ranks = [
        subprocess.Popen(
            command, env=os.environ | address | {"RANK": rank}, stdout=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    for rank, process in enumerate(ranks):
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and re.match(
            f"{rank} stopped after update 4: go on with --resume", out
        ), out
    ours = [entry for entry in Toy(tmp_path).log() if "loss" in entry]
    theirs = [entry for entry in whole.log() if "loss" in entry]
    assert len(ours) == len(theirs) == 13
    for a, b in zip(ours, theirs, strict=True):
        assert (a["step"], a["utterances"], a["parts"].keys()) == (
            b["step"],
            b["utterances"],
            b["parts"].keys(),
        )
    assert [a["loss"] for a in ours] == pytest.approx([b["loss"] for b in theirs], rel=0.03)


def test_weights_that_are_not_finite_are_not_scored(tmp_path):
    training.save_weights(tmp_path / "model.safetensors", {"a": torch.tensor([1.0, math.nan])})
    with pytest.raises(UserError, match="not finite"):
        training.load_weights(tmp_path / "model.safetensors")
