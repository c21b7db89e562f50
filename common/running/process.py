"""The process of a run: its place among the ranks, its device, folder and seeds.

place = start(config)              # ranks, device, the folder --out
with first_rank_first(place): ...  # one rank downloads or builds, then the others
gather(item, place)                # [the item of every rank]
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from common.errors import UserError, note
from common.files import write_atomically
from common.running.flags import RunConfig, differences, load_config


class Place(NamedTuple):
    """This process among `ranks`, its device, and the type of networks (None: fp32)."""

    rank: int
    ranks: int
    device: torch.device
    dtype: torch.dtype | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)


def start(config: RunConfig) -> Place:
    """As `join`, and opens --out. Raises UserError."""
    place = join(config.device, config.precision)
    if not config.checkpoint:
        open_folder(config, place)
    elif place.first and not config.transcribe:
        open_scores(Path(config.out))
    return place


def join(device: str, precision: str) -> Place:
    """This process with its device, as one of torchrun's ranks if there are several.

    device: auto, cpu, cuda or cuda:N. precision: auto, fp32 or bf16. Raises UserError.
    """
    rank = int(os.environ.get("RANK", 0))
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    found = find_device(device, ranks)
    if ranks > 1 and not dist.is_initialized():
        # The others wait while the first rank downloads a corpus.
        backend = "nccl" if found.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=12))
        atexit.register(dist.destroy_process_group)
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    fast = found.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    bf16 = precision == "bf16" or (precision == "auto" and fast)
    place = Place(rank, ranks, found, torch.bfloat16 if bf16 else None)
    if bf16 and found.type == "cpu" and place.first:
        note("--precision bf16 is several times slower than fp32 on a CPU.")
    return place


def find_device(name: str, ranks: int) -> torch.device:
    """The device that --device names; each of several ranks has a GPU of its own.

    Raises UserError.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"--device {name}: this machine (or this build of torch) has no CUDA: use --device cpu."
        )
    if ranks > 1 and ":" in name:
        raise UserError(f"--device {name} is for one process: with torchrun give --device cuda.")
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if device.index >= count:
            raise UserError(
                f"--device {name}: this machine has {count} CUDA devices, from cuda:0 on."
            )
        torch.cuda.set_device(device)
    return device


@contextmanager
def first_rank_first(place: Place):
    """The first rank goes through the block alone, then all the others.

    It may download or build something there.
    """
    if not place.first:
        barrier(place)
    yield
    if place.first:
        barrier(place)


def barrier(place: Place) -> None:
    """Waits for all ranks."""
    if place.ranks > 1:
        dist.barrier()


def gather(item, place: Place) -> list:
    """Any picklable object of every rank, in the order of ranks."""
    if place.ranks == 1:
        return [item]
    items = [None] * place.ranks
    dist.all_gather_object(items, item)
    return items


def reseed(*parts: int) -> None:
    """Seeds torch, numpy and random, from all of which transformers draws."""
    torch.manual_seed(random.Random(repr(parts)).getrandbits(60))
    random.seed(repr(parts))
    np.random.seed(random.getrandbits(32))  # noqa: NPY002  (the generator that libraries draw from)


def synchronise(place: Place) -> float:
    """The clock in seconds, once the device has done all it was asked."""
    if place.device.type == "cuda":
        torch.cuda.synchronize(place.device)
    return time.perf_counter()


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Inside the block, SIGTERM and the first Ctrl-C only set the event.

    A second Ctrl-C stops the process at once.
    """
    asked = threading.Event()

    def request(signum, frame):
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def quiet_bars() -> None:
    """Switches off transformers' progress bars if stderr is no terminal, like ours."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()


_locks: dict[Path, object] = {}  # open files, whose locks end with this process, however it ends


def make_folder(folder: Path) -> None:
    """Raises UserError if it cannot be made or written in."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ".writable", "")
        (folder / ".writable").unlink()
    except (OSError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) else "nothing can be written there"
        raise UserError(
            f"--out {folder} cannot be used ({reason}): choose another folder."
        ) from None


def open_scores(folder: Path) -> None:
    """Makes a folder for the scores of a finished run.

    Raises UserError if the folder is that of a run.
    """
    if (folder / "config.json").exists():
        raise UserError(
            f"{folder} holds a run, whose results this would replace: give another --out."
        )
    make_folder(folder)


def open_folder(config: RunConfig, place: Place) -> None:
    """Creates --out with its config.json, and keeps other processes out of it.

    Raises UserError for a folder that has a run already if --resume was not given, and
    for one in which a run is going on.
    """
    folder = Path(config.out)
    if place.first:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _lock(folder.resolve())
        except BlockingIOError:
            raise UserError(
                f"another process is training in {folder}: wait for it, or choose another --out."
            ) from None
        except OSError as error:
            raise UserError(
                f"--out {folder} cannot be used ({error.strerror}): choose another folder."
            ) from None
        if not config.resume:
            if (folder / "last.pt").exists() or (folder / "model.safetensors").exists():
                advice = "add --resume to go on with it, or choose another --out."
                raise UserError(f"{folder} already holds a run: {advice}")
            # A run that never reached its first checkpoint has left its log.
            (folder / "log.jsonl").unlink(missing_ok=True)
            write_atomically(folder / "config.json", json.dumps(config.stored(), indent=1) + "\n")
        for draft in folder.rglob(".*.partial"):  # of a run that was killed while it wrote
            draft.unlink()
    barrier(place)


def _lock(folder: Path) -> None:
    """lockf, because a flock would live on in the worker processes of a killed run."""
    if folder not in _locks:
        file = open(folder / ".lock", "w")  # noqa: SIM115  (closing it would end the lock)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _locks[folder] = file


class Stage(NamedTuple):
    """An earlier run that another one builds on."""

    method: str  # its own
    flag: str  # the option that names its folder
    presets: dict  # of the script
    may_differ: Sequence[str]  # options on which the two runs need not agree
    corpus: str  # digest of what is learnt from now, see `training.digest_of`


def earlier_stage(
    config: RunConfig,
    place: Place,
    stage: Stage,
    run_method: Callable[[RunConfig], object],
    **changes,
) -> RunConfig:
    """The configuration, with --checkpoint, of an earlier run that this one builds on:
    an ordinary run of its own.

    With auto it is the one beside this run, or where it is by default, and run_method
    trains it where there is none. A run that is not finished is gone on with. changes:
    what else makes it that run, beside its method. Raises UserError if a folder was
    named that holds no run, where the run differs in an option or in what it was
    trained on, and where --max-steps cut it short and this one goes on longer.
    """
    named = getattr(config, stage.flag.removeprefix("--").replace("-", "_"))
    folder = _earlier_folder(config, stage.method) if named == "auto" else Path(named)
    # Asked before the first rank makes one.
    begun = gather((folder / "config.json").exists(), place)[0]
    if named != "auto" and not begun:
        what = f"give the folder of a run of {stage.method}, or auto, which trains one"
        raise UserError(f"{stage.flag} {named} holds no run: {what} where there is none.")
    changes = {"method": stage.method, "checkpoint": None, "decode": "greedy"} | changes
    asked = replace(config, out=str(folder), resume=begun, **changes)
    if begun:
        stored = load_config(type(config), folder, stage.presets)
        asked = replace(asked, **{name: getattr(stored, name) for name in stage.may_differ})
        cut_short = config.max_steps or not stored.max_steps
        asked = replace(asked, max_steps=stored.max_steps if cut_short else None)
        if changed := differences(stored, asked):
            what = f"the {stage.method} in {folder} was trained otherwise ({'; '.join(changed)})"
            raise UserError(f"{what}: give another {stage.flag}.")
    if not (folder / "model.safetensors").exists():
        if place.first:
            note(f"{stage.method} first, in {folder}")
        run_method(asked)
    elif begun:
        _check_corpus(folder, stage, place)
    return replace(asked, checkpoint=str(folder))


def _check_corpus(folder: Path, stage: Stage, place: Place) -> None:
    """Raises UserError if the finished run was trained on other utterances.

    If its last.pt is gone, this cannot be known; a note says so.
    """
    path = folder / "last.pt"
    if not path.exists():
        if place.first:
            note(f"{folder} has no last.pt: whether its data were the same cannot be told")
        return
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        corpus = state["progress"]["corpus"]
    except Exception as error:  # what torch.load raises depends on where a file is damaged
        what = f"cannot be read (damaged, or of another version: {type(error).__name__})"
        raise UserError(f"{path} {what}: give another {stage.flag}.") from None
    if corpus != stage.corpus:
        what = f"the {stage.method} in {folder} was trained on other utterances than --data now has"
        advice = f"bring the data back as they were, or give another {stage.flag}."
        raise UserError(f"{what}: {advice}")


def _earlier_folder(config: RunConfig, method: str) -> Path:
    beside = Path(config.out).with_name(method)
    script = Path(sys.modules[type(config).__module__].__file__).stem
    default = Path("runs") / f"{script}-{Path(config.data).name}-{method}-s{config.seed}"
    return beside if (beside / "config.json").exists() else default
