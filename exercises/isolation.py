"""Runs one graded test in a process of its own, with limits.

The limits stop accidents: endless loops, gigabytes of memory or output, processes
without end. They are no sandbox. Without bubblewrap the process can read what its user
can read, the master's solutions too. With bubblewrap (`bwrap`) it sees no master, no
network and no other processes, and writes into its own folder only.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from exercises.table import MASTER

SECONDS = 30  # of a graded test, imports included
NOBODY = 65534


def run(task: dict[str, Any], work: Path) -> Any:
    """What the test computes in the folder `work`, or a sentence about the failure."""
    out = work.parent / "out"
    out.mkdir()
    work.parent.chmod(0o755)  # another user may run the test ...
    out.chmod(0o777)  # ... and writes here
    arguments = [sys.executable, "-m", "exercises.child", json.dumps(task), str(out)]
    with (out / "printed.txt").open("wb") as printed:
        process = subprocess.Popen(
            [*wrapper(work), *arguments],
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            start_new_session=True,
            user=NOBODY if can_be_nobody() else None,
            env={"PATH": os.defpath, "OMP_NUM_THREADS": "1", "HOME": str(out)},
        )
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            return f"It took longer than {SECONDS} seconds."
        finally:
            with suppress(ProcessLookupError):  # what it left running; often there is nothing
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return read_result(out, process.returncode)


def read_result(out: Path, code: int) -> Any:
    try:
        found = json.loads((out / "result.json").read_text(encoding="utf-8"))
        return found["error"] if "error" in found else found["result"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    printed = ""
    with suppress(OSError):
        printed = (out / "printed.txt").read_bytes()[-300:].decode(errors="replace")
    return f"It ended without a result (exit code {code}).\n{printed}".strip()


@cache
def can_bubblewrap() -> bool:
    command = ["bwrap", "--ro-bind", "/", "/", "--unshare-all", "true"]
    return shutil.which("bwrap") is not None and not subprocess.run(command, check=False).returncode


def wrapper(work: Path) -> list[str]:
    """The words in front of the command: bubblewrap, where there is one."""
    if not can_bubblewrap():
        return []
    command = [
        str(shutil.which("bwrap")),
        "--die-with-parent",
        "--unshare-all",
        "--ro-bind",
        "/",
        "/",
    ]
    command += ["--dev", "/dev", "--proc", "/proc", "--tmpfs", str(MASTER)]
    if Path(sys.prefix).is_relative_to(MASTER):  # the environment lies in the master's folder
        command += ["--ro-bind", sys.prefix, sys.prefix]
    return [*command, "--bind", str(work.parent), str(work.parent), "--chdir", str(work)]


@cache
def can_be_nobody() -> bool:
    """Whether this is root, and the user nobody could run the tests."""
    if os.geteuid() != 0 or can_bubblewrap():
        return False
    try:
        found = subprocess.run(
            [sys.executable, "-c", "import torch"], user=NOBODY, capture_output=True, check=False
        )
    except OSError:
        return False
    return found.returncode == 0


def warning() -> str:
    """What a lecturer should know about this machine; empty with bubblewrap."""
    if can_bubblewrap():
        return ""
    said = "No bubblewrap here: a submission can read what its user can read."
    if os.geteuid() == 0 and not can_be_nobody():
        said += " It runs as root: grade as another user, or in a container."
    return said
