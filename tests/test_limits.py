"""Limits on the density of the code (tests/limits.py) hold in every file that is not on this list."""

import subprocess
import sys

from conftest import REPOSITORY

UNFINISHED = {  # written before there were limits
    "hubert_gpt_bridge.py",
    "common/hubert.py",
    "common/running/flags.py",
    "common/running/published.py",
}


def test_limits():
    command = [sys.executable, "tests/limits.py", "-v"]
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True).stdout
    *findings, _ = [line for line in said.splitlines() if " lines, code " not in line]
    files = {line.split(":")[0] for line in findings}
    assert files <= UNFINISHED, [line for line in findings if line.split(":")[0] not in UNFINISHED]
    assert files >= UNFINISHED  # what is finished leaves the list
