"""Runs one graded test in a process of its own, with limits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

SECONDS = 60


def run(task: dict[str, Any], work: Path) -> dict[str, Any] | str:
    """What the test computes in the folder `work`, or a sentence about what went wrong."""
    out = work.parent / "out"
    out.mkdir()
    command = [sys.executable, "-m", "exercises.child", json.dumps(task), str(out)]
    with (out / "printed.txt").open("wb") as printed:
        process = subprocess.Popen(
            command,
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            start_new_session=True,
        )
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            return f"It took longer than {SECONDS} seconds."
        finally:
            with suppress(ProcessLookupError):  # what it left running; often there is nothing
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    try:
        found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"It ended without a result (exit code {process.returncode})."
    return found["error"] if "error" in found else found["result"]
