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
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from common.errors import UserError, note
from common.files import write_atomically
from common.running.options import RunConfig


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
    """As `join`, and opens --out for training. Raises UserError."""
    place = join(config.device, config.precision)
    open_folder(config, place)
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
    """Switches off transformers' progress bars if stderr is no terminal, like ours.

    And its report of weights that a model has no place for, such as the head of a BERT
    whose states are wanted; what is missing is an error, see `pretrained.load_model`.
    """
    from transformers.utils import logging

    logging.get_logger("transformers.modeling_utils").setLevel(logging.ERROR)
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
