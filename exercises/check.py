"""Tests your solutions, in seconds: `python -m exercises.check`.

A graded test computes something with your functions. The file expected.json holds what
comes out of a right solution, and out of some wrong ones. The grader compares in the
same way, with other numbers. Of an exercise to break, the form alone is checked here.
"""

from __future__ import annotations

import ast
import importlib
import json
import math
import subprocess
import sys
import tomllib
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
                index = [int(x) for x in where] or ""
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
    return f"{found}\n{common_factor(test['expected'], got)}".rstrip()


def common_factor(expected: dict[str, Any], got: dict[str, Any]) -> str:
    """A sentence where all numbers are the same multiple of the right ones; else
    nothing."""
    ratios = []
    for key, right in expected.items():
        found = got.get(key)
        if not isinstance(right, dict) or not isinstance(found, dict):
            return ""
        if right["shape"] != found["shape"]:
            return ""
        for a, b in zip(right["values"], found["values"], strict=True):
            if not _close(a, 0.0):
                ratios.append(b / a)
            elif not _close(b, 0.0):
                return ""
    if not ratios or not all(_close(ratio, ratios[0]) for ratio in ratios):
        return ""
    if _close(ratios[0], -1.0):
        return "The sign is wrong."
    return f"All numbers of this test are {ratios[0]:.3g} times the right ones."


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


# ------------------------------------------------------------------------ exercises to break


def form_of_answer(id: str) -> str:
    """What is wrong with the form of answers.toml. The grader says whether it is
    right."""
    try:
        answer = tomllib.loads(Path("answers.toml").read_text(encoding="utf-8"))[id]
        file = answer["file"]
        function = answer["function"]
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, SyntaxError) as error:
        return f"answers.toml does not name a file and a function: {error!r}"
    defined = (ast.FunctionDef, ast.ClassDef)
    names = {node.name for node in ast.walk(tree) if isinstance(node, defined)}
    if set(function.split(".")) <= names:
        return ""
    return f"{file} has no {function}."


def form_of_test(file: str) -> str:
    """Says if the student's test does not fail here by an assertion."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return "It passes: is the mistake still in the code?"
    is_assertion = "AssertionError" in done.stdout or "assert " in done.stdout
    if done.returncode != 1 or not is_assertion:
        return "It does not fail by an assertion: run it with pytest."
    return ""


def problems() -> Iterator[tuple[str, str]]:
    """(what is checked, what is wrong with it or nothing), of all exercises in turn."""
    for id, exercise in json.loads(EXPECTED.read_text(encoding="utf-8")).items():
        if "test_file" in exercise:
            yield f"{id}  answers.toml can be read", form_of_answer(id)
            file = exercise["test_file"]
            yield f"{id}  {file} fails here, by an assertion", form_of_test(file)
            continue
        for name, test in exercise["tests"].items():
            title = find_test(exercise["paper"], name).__doc__.splitlines()[0]
            yield f"{id}  {title}", problem_of(exercise, name, test)


def main() -> int:
    """Prints a line for each thing that is checked, and what is wrong. 1 if anything
    is."""
    is_complete = True
    for what, problem in problems():
        is_complete = is_complete and not problem
        print(f"{'FAIL' if problem else 'pass'}  {what}")
        if problem:
            print("      " + problem.replace("\n", "\n      "))
    return 0 if is_complete else 1


if __name__ == "__main__":
    sys.exit(main())
