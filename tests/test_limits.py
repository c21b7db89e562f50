"""Limits on the density of the code (tests/limits.py) hold in every file."""

import subprocess
import sys

from conftest import REPOSITORY


def test_limits():
    command = [sys.executable, "tests/limits.py", "-v"]
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True).stdout
    assert said.splitlines()[-1] == "all limits hold", said
