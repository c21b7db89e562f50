"""Tests your solutions, in seconds: `python -m exercises.check`.

A graded test computes something with your functions. The file expected.json holds what
comes out of a right solution, and out of some wrong ones. The grader compares in the
same way, with other numbers.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

EXPECTED = Path(__file__).parent / "expected.json"
TOLERANCE = 1e-4


class Draw:
    """Random inputs of a graded test; the same name gives the same inputs."""

    def __init__(self, name: str):
        self.generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))

    def integer(self, low: int, high: int) -> int:
        """One of low ... high."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def labels(self, count: int, size: int) -> list[int]:
        """Labels of 1 ... size - 1; label 0 is the blank."""
        return torch.randint(1, size, (count,), generator=self.generator).tolist()

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def log_probs(self, *shape: int) -> Tensor:
        return self.normal(*shape).log_softmax(-1)


def find_test(paper: str, name: str) -> Callable:
    return getattr(importlib.import_module(f"exercises.tests.{paper}"), name)


def compute(paper: str, name: str, code: SimpleNamespace, draw: str) -> dict[str, Any]:
    """What the test computes with this code, as JSON can hold it."""
    torch.manual_seed(0)
    found = find_test(paper, name)(code, Draw(f"{draw}-{name}"))
    return {key: _plain(value) for key, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        flat = value.detach().double().flatten().tolist()
        return {"shape": list(value.shape), "values": flat}
    if isinstance(value, int | float):
        return {"shape": [], "values": [float(value)]}
    return json.loads(json.dumps(value))  # tuples become lists


# ------------------------------------------------------------------------------------ comparing


def difference(expected: dict[str, Any], got: dict[str, Any]) -> str:
    """Where two results of a test differ first, in a sentence; empty if they do not."""
    for key, right in expected.items():
        found = got.get(key)
        if not isinstance(right, dict):
            if right != found:
                return f"{key}: expected {right}, got {found}"
            continue
        if not isinstance(found, dict):
            return f"{key}: expected a tensor, got {found}"
        if right["shape"] != found["shape"]:
            return f"{key}: expected the shape {right['shape']}, got {found['shape']}"
        for i, pair in enumerate(zip(right["values"], found["values"], strict=True)):
            if not _close(*pair):
                where = torch.unravel_index(torch.tensor(i), right["shape"])
                index = [int(x) for x in where]
                return f"{key}{index}: expected {pair[0]:.6g}, got {pair[1]:.6g}"
    return ""


def _close(a: float, b: float) -> bool:
    both_nan = math.isnan(a) and math.isnan(b)
    return both_nan or math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def explain(test: dict[str, Any], got: dict[str, Any]) -> str:
    """What differs, and the mistake if it is known; empty if the result is right."""
    found = difference(test["expected"], got)
    if not found:
        return ""
    for says, wrong in test["wrong"]:
        if not difference(wrong, got):
            return f"{found}\n{says}"
    return found


# -------------------------------------------------------------------------------------- running


@contextmanager
def blocked(names: Sequence[str]) -> Iterator[None]:
    """Without the functions of libraries that an exercise asks to write."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("This function of a library is not available in this exercise.")

    kept = []
    for name in names:
        path, _, function = name.rpartition(".")
        module = importlib.import_module(path)
        kept.append((module, function, getattr(module, function)))
        setattr(module, function, refuse)
    try:
        yield
    finally:
        for place in kept:
            setattr(*place)


def students_code(files: list[str]) -> SimpleNamespace:
    """The modules of these files by their last names: code.rnnt, code.interaed_kd."""
    modules = {}
    for file in files:
        name = file.removesuffix(".py").replace("/", ".")
        modules[Path(file).stem] = importlib.import_module(name)
    return SimpleNamespace(**modules)


def last_words(error: BaseException) -> str:
    """What an error says, and the line where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def problem_of(exercise: dict[str, Any], name: str, test: dict[str, Any]) -> str:
    """What is wrong in this test; empty if it passes."""
    try:
        with blocked(exercise["blocked"]):
            code = students_code(exercise["files"])
            return explain(test, compute(exercise["paper"], name, code, "check"))
    except Exception as error:
        return last_words(error)


def main() -> int:
    """Prints a line for each graded test, and what is wrong. 1 if anything is."""
    exercises = json.loads(EXPECTED.read_text(encoding="utf-8"))
    is_complete = True
    for id, exercise in exercises.items():
        for name, test in exercise["tests"].items():
            problem = problem_of(exercise, name, test)
            is_complete = is_complete and not problem
            mark = "FAIL" if problem else "pass"
            print(f"{mark}  {id}  {find_test(exercise['paper'], name).__doc__.splitlines()[0]}")
            if problem:
                print("      " + problem.replace("\n", "\n      "))
    return 0 if is_complete else 1


if __name__ == "__main__":
    sys.exit(main())
