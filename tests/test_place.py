"""Where a run runs: its device, its random numbers, and the folder that it has for itself."""

import multiprocessing
import os
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from common.running.corpora import Utterance
from common.running.flags import RunConfig, UserError
from common.running.process import (
    Place,
    Stage,
    earlier_stage,
    gather,
    open_folder,
    reseed,
    start,
    synchronise,
)
from common.running.training import Progress, digest_of

CPU = Place(0, 1, torch.device("cpu"))


@pytest.fixture
def config(tmp_path):
    return replace(RunConfig(), device="cpu", out=str(tmp_path / "run"))


def test_devices(config):
    place = start(config)
    assert (place.rank, place.ranks, place.device.type, place.dtype) == (
        0,
        1,
        "cpu",
        None,
    ) and place.first
    if not torch.cuda.is_available():
        for device in ("cuda", "cuda:3"):
            with pytest.raises(UserError, match=f"--device {device}: .*--device cpu"):
                start(replace(config, device=device))
        assert start(replace(config, device="auto")).device.type == "cpu"


def test_half_precision(config, capsys):
    place = start(replace(config, precision="bf16"))
    assert place.dtype == torch.bfloat16 and "slower than fp32 on a CPU" in capsys.readouterr().err
    a = torch.ones(2, 2)
    with place.autocast():
        assert (a @ a).dtype == torch.bfloat16
    with CPU.autocast():
        assert (a @ a).dtype == torch.float32


def test_seeds_differ_in_every_part_and_repeat():
    """For all three generators that libraries draw from."""

    def draw(*parts):
        reseed(*parts)
        return *torch.rand(3).tolist(), random.random(), *np.random.rand(2)  # noqa: NPY002

    seen = [draw(*parts) for parts in [(1, 2, 3), (1, 2, 4), (1, 23), (12, 3), (1, 2, 3, 0)]]
    assert len(set(seen)) == len(seen) and draw(1, 2, 3) == seen[0]
    assert all(len(set(column)) == len(seen) for column in zip(*seen, strict=True))


def test_one_rank_needs_no_others():
    assert gather({"a": 1}, CPU) == [{"a": 1}] and synchronise(CPU) <= synchronise(CPU)


# ----------------------------------------------------------------------------------------------- the folder of a run


def test_the_folder_of_a_run(config, tmp_path):
    folder = tmp_path / "run"
    open_folder(config, CPU)
    written = (folder / "config.json").read_text()
    assert '"data": "demo"' in written and "device" not in written
    (folder / "log.jsonl").write_text("of a run that never reached its first checkpoint")
    (folder / ".last.pt.1.partial").write_bytes(b"half a checkpoint of a killed run")
    open_folder(replace(config, seed=5), CPU)
    assert {p.name for p in folder.iterdir()} == {".lock", "config.json"}
    assert '"seed": 5' in (folder / "config.json").read_text()
    (folder / "last.pt").touch()
    with pytest.raises(UserError, match="already holds a run: add --resume"):
        open_folder(config, CPU)
    open_folder(replace(config, resume=True), CPU)
    assert '"seed": 5' in (folder / "config.json").read_text()
    (folder / "last.pt").rename(folder / "model.safetensors")
    with pytest.raises(UserError, match="already holds a run: add --resume"):
        open_folder(config, CPU)


def test_a_second_process_is_refused(config):
    """And one that ended, however, leaves no lock."""
    context = multiprocessing.get_context("fork")
    opened, end = context.Event(), context.Event()

    def hold():
        open_folder(config, CPU)
        opened.set()
        end.wait(60)
        os._exit(9)

    other = context.Process(target=hold)
    other.start()
    assert opened.wait(60)
    for changes in ({}, {"resume": True}):
        with pytest.raises(UserError, match="another process is training in .*another --out"):
            open_folder(replace(config, **changes), CPU)
    end.set()
    other.join()
    open_folder(config, CPU)


def test_folders_that_cannot_be_used(config, tmp_path):
    (tmp_path / "run").write_text("a file")
    for out in (
        config.out,
        f"{config.out}/inside",
        "/proc/nowhere/run",
        "/proc",
        "/dev/null",
        f"{tmp_path}/{'x' * 300}",
    ):
        with pytest.raises(UserError, match="choose another folder"):
            open_folder(replace(config, out=out), CPU)
    assert (tmp_path / "run").read_text() == "a file"


def test_a_folder_that_may_not_be_written(config, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="--out .*Permission denied"):
        open_folder(config, CPU)
    tmp_path.chmod(0o700)


def test_scoring_into_a_folder_that_cannot_be_used(tmp_path):
    """Found before anything is loaded."""
    (tmp_path / "file").touch()
    for out in ("file", "file/x"):
        with pytest.raises(UserError, match="cannot be used .*choose another folder"):
            start(replace(RunConfig(), device="cpu", checkpoint="x", out=str(tmp_path / out)))
    start(replace(RunConfig(), device="cpu", checkpoint="x", out=str(tmp_path / "new")))
    assert (tmp_path / "new").is_dir() and not list((tmp_path / "new").iterdir())


# --------------------------------------------------------------------- an earlier stage


@dataclass(frozen=True)
class Config(RunConfig):
    """Of a script whose runs of `second` build on one of `first`."""

    # -- method --
    method: Literal["first", "second"] = "second"  # row
    first_run: str = "auto"  # of first
    units: int = 5  # of second
    # -- decoding --
    decode: Literal["greedy"] = "greedy"  # how


DATA = [Utterance("a", "a.wav", "the king", 1.0), Utterance("b", "b.wav", "a sail", 2.0)]


def finish(config: Config, utterances=DATA) -> None:
    """What a finished run leaves behind."""
    open_folder(config, CPU)
    progress = asdict(Progress(utterances=len(utterances), corpus=digest_of(utterances)))
    torch.save({"model": {}, "progress": progress}, Path(config.out) / "last.pt")
    (Path(config.out) / "model.safetensors").touch()


def find(config: Config, utterances=DATA, train=finish) -> Config:
    stage = Stage("first", "--first-run", {}, ("first_run", "units"), digest_of(utterances))
    return earlier_stage(config, CPU, stage, train)


def test_an_earlier_stage_is_trained_by_default_and_then_found(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = find(Config(out="runs/second"))
    assert "first first, in runs/test_place-demo-first-s1" in capsys.readouterr().err
    assert (found.method, found.checkpoint) == ("first", "runs/test_place-demo-first-s1")
    again = find(Config(out="runs/second", first_run=found.checkpoint, units=7), train=None)
    assert again.checkpoint == found.checkpoint and again.units == 5
    with pytest.raises(
        UserError, match="was trained otherwise .*--seed 1 -> 2.*another --first-run"
    ):
        find(Config(out="runs/second", first_run=found.checkpoint, seed=2), train=None)


def test_a_named_stage_that_does_not_exist_is_refused_and_not_trained(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("mistyped", "empty"):
        config = Config(out=str(tmp_path / "second"), first_run=str(tmp_path / name))
        with pytest.raises(UserError, match=f"--first-run .*{name} holds no run: give the folder"):
            find(config)
    assert not (tmp_path / "mistyped").exists() and not list((tmp_path / "empty").iterdir())


CHANGED = {
    "another text": [DATA[0], replace(DATA[1], text="a sale")],
    "one fewer": DATA[:1],
    "another length": [DATA[0], replace(DATA[1], duration=2.5)],
}


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("named", [True, False])
def test_a_stage_trained_on_other_data_is_refused(tmp_path, change, named):
    """Though the data have the same name; whether the stage was named or found."""
    folder = tmp_path / "first"
    finish(Config(method="first", out=str(folder)))
    config = Config(out=str(tmp_path / "second"), first_run=str(folder) if named else "auto")
    assert find(config, train=None).checkpoint == str(folder)
    with pytest.raises(
        UserError, match="the first in .* was trained on other utterances than --data"
    ):
        find(config, CHANGED[change])


def test_a_stage_whose_data_cannot_be_asked(tmp_path, capsys):
    folder = tmp_path / "first"
    finish(Config(method="first", out=str(folder)))
    config = Config(out=str(tmp_path / "second"), first_run=str(folder))
    (folder / "last.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="last.pt cannot be read .*give another --first-run"):
        find(config)
    (folder / "last.pt").unlink()
    assert find(config, train=None).checkpoint == str(folder)
    assert (
        "has no last.pt: whether its data were the same cannot be told" in capsys.readouterr().err
    )
