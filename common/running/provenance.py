"""How the scores of a run came about: scored.json, beside result.json.

It has what the page of a run (`report.py`) shows and cannot find out afterwards.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from common.files import write_atomically
from common.running.corpora import Corpus
from common.running.process import Place

PROJECT = Path(__file__).parents[2]


def write(config: Any, corpus: Corpus, not_scored: dict[str, dict[str, str]], place: Place) -> None:
    """Writes scored.json into the folder `config.out`.

    not_scored: {test set: {utterance: why its audio could not be read}}.
    """
    about = {
        "command": command(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(place),
        "root": config.root,
        "data": config.data,
        "homophones": corpus.homophones,
        "missing": {name: bad for name, bad in corpus.missing.items() if bad},
        "not_scored": {name: bad for name, bad in not_scored.items() if bad},
    }
    write_atomically(Path(config.out) / "scored.json", json.dumps(about, indent=1) + "\n")


def command() -> str:
    """The command that started this process; for --resume the last one."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def commit() -> str | None:
    """The commit of this code, with `-dirty` where files were changed; None without
    git."""
    asked = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(asked, cwd=PROJECT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def machine(place: Place) -> str:
    """The hardware in words, and the versions of Python and PyTorch."""
    if place.device.type == "cuda":
        hardware = f"{place.ranks} x {torch.cuda.get_device_name(place.device)}"
    else:
        cores = len(os.sched_getaffinity(0))
        threads = torch.get_num_threads()
        hardware = f"{processor()}, {cores} cores, {place.ranks} x {threads} threads"
    return f"{hardware}; Python {platform.python_version()}, PyTorch {torch.__version__}"


def processor() -> str:
    """The name of the processor, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
