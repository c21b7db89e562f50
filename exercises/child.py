"""Computes one graded test with a student's code, under limits that it sets itself."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from exercises import check

MEMORY = 4 * 2**30  # bytes
OUTPUT = 10 * 2**20  # bytes of a file, and so of everything that is printed
CPU_SECONDS = 60
PROCESSES = ("os.fork", "os.exec", "os.system", "os.posix_spawn", "subprocess.Popen", "pty.spawn")


def limit() -> None:
    """For all that follows in this process."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT, OUTPUT))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(refuse_processes)


def refuse_processes(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(PROCESSES):
        raise PermissionError("A solution may not start processes.")


def compute(task: dict[str, Any]) -> Any:
    """What a graded test computes, or how a student's own test ends."""
    if "test_file" in task:
        import pytest

        return int(pytest.main(["-q", "-p", "no:cacheprovider", task["test_file"]]))
    with check.blocked(task["blocked"]):
        code = check.students_code(task["files"])
        return check.compute(task["paper"], task["name"], code, task["draw"])


def main(task: dict[str, Any], out: Path) -> None:
    limit()
    try:
        found = {"result": compute(task)}
    except BaseException as error:  # SystemExit too
        found = {"error": check.last_words(error)}
    (out / "result.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
