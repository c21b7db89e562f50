"""What the demo worlds share: speech from fresh processes, subsets that are there whole or not at all, one per folder.

run_speech(job)                                   eSpeak NG in a process of its own
speak(folder, {"LibriSpeech/train-000": [...]})   speaks whole subsets and publishes each when it is complete
claim(folder, world, "LibriSpeech/*")             refuses a folder that holds something else
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError
from common.files import write_atomically

SHARD = 100  # utterances: what one process of the synthesiser speaks


def run_speech(job: dict) -> str:
    """Runs `common.demo.speech` on a job in a fresh process; returns what it prints. Raises UserError if it fails."""
    command, root = [sys.executable, "-m", "common.demo.speech"], Path(__file__).parents[2]
    done = subprocess.run(
        command, input=json.dumps(job), cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"The speech of the demo world could not be made: {last}")
    return done.stdout


def speak(
    folder: Path,
    subsets: dict[str, list[dict]],
    shard: int,
    list_them: Callable[[Path, list[dict]], None],
    progress: bool,
) -> None:
    """Speaks subsets {path in `folder`: utterances}, a process per `shard` utterances, as many at once as cores.

    An utterance is what `common.demo.speech` wants, its path within the subset. list_them(subset's folder, utterances)
    writes the transcripts when all audio is there. A subset grows in a hidden folder and is renamed when complete.
    Raises UserError.
    """
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=folder))
    quiet = None if progress else True  # None: where stderr is no terminal
    bar = tqdm(
        total=sum(map(len, subsets.values())),
        desc="building the demo world",
        unit="utt",
        disable=quiet,
    )
    pool = ThreadPoolExecutor(os.cpu_count())
    before = stop_on_sigterm()
    try:
        waiting, jobs = {}, {}
        for subset, planned in subsets.items():
            for chapter in {(work / subset / u["path"]).parent for u in planned}:
                chapter.mkdir(parents=True)
            shards = [planned[i : i + shard] for i in range(0, len(planned), shard)]
            waiting[subset] = len(shards)
            for some in shards:
                spoken = [u | {"path": str(work / subset / u["path"])} for u in some]
                jobs[pool.submit(run_speech, {"utterances": spoken})] = subset, len(some)
        for job in as_completed(jobs):
            job.result()
            subset, count = jobs[job]
            bar.update(count)
            waiting[subset] -= 1
            if not waiting[subset]:
                list_them(work / subset, subsets[subset])
                publish(work / subset, folder / subset)
    except OSError as error:
        raise UserError(
            f"The demo world cannot be kept in {folder} ({error.strerror}): free some space."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
        shutil.rmtree(work, ignore_errors=True)
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def stop_on_sigterm():
    """Lets SIGTERM stop this process as Ctrl-C does, so that a `finally` is reached.

    Returns the handler before, to be set again; None where this is not the main thread,
    which alone may set one.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, signal.default_int_handler)


def publish(finished: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    try:
        finished.rename(target)
    except OSError:
        if not target.exists():
            raise
        # another process was quicker and wrote the same bytes


def claim(folder: Path, world: dict, corpus: str) -> None:
    """Writes world.json, or checks that the one there names the same world; clears away what killed builds left.

    corpus: a pattern that matches once there is any. Raises UserError.
    """
    mark = folder / "world.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = any(
            folder.glob(corpus)
        )  # asked before the mark: another build may be starting right now
        if not mark.exists():
            if used:
                raise UserError(
                    f"{folder} holds a corpus that is not the demo world: give another folder."
                )
            write_atomically(mark, json.dumps(world) + "\n")
        found = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"The demo world cannot be kept in {folder} ({error}): give another folder."
        ) from error
    if found != world:
        raise UserError(
            f"{folder} holds another demo world ({_describe(found)}) than the one asked for ({_describe(world)}): "
            "delete it or give another folder."
        )
    for left in folder.glob(".building-*"):
        if (
            time.time() - left.stat().st_mtime > 3600
        ):  # seconds; a living build adds a subset far more often
            shutil.rmtree(left, ignore_errors=True)


def _describe(world: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in world.items())
