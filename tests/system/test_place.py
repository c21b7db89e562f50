"""Where a run runs: its device, its random numbers, and the folder that it has for itself."""

import multiprocessing
import os
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.running.options import RunConfig
from common.running.process import (
    Place,
    gather,
    open_folder,
    open_scores,
    reseed,
    start,
    synchronise,
)

CPU = Place(0, 1, torch.device("cpu"))


@pytest.fixture
def config(tmp_path):
    return RunConfig(methods=("a",), device="cpu", out=str(tmp_path / "run"))


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
            open_scores(tmp_path / out)
    open_scores(tmp_path / "new")
    assert (tmp_path / "new").is_dir() and not list((tmp_path / "new").iterdir())
    (tmp_path / "new" / "config.json").touch()
    with pytest.raises(UserError, match="holds a run, whose results this would replace"):
        open_scores(tmp_path / "new")
