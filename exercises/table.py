"""What an exercise is, and all of them: the one master copy.

A wrong solution, a variation for another class and a planted bug are the same thing: a
small replacement in the master's text.
"""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import NamedTuple

MASTER = Path(__file__).parents[1]
SETS = ("week0", "interaed", "multirep", "streaming", "hubert", "llm", "breaks", "predictions")


class Change(NamedTuple):
    """A replacement in the exercise's functions. `says`: what it means, to a student.

    As a mutant it is a known wrong solution, and `says` names the mistake. As a
    variation it is another task, and `says` goes into the student's README.
    """

    old: str
    new: str
    says: str


class Exercise(NamedTuple):
    """Functions to write."""

    id: str
    title: str
    minutes: int
    functions: dict[str, str]  # function or Class.method to write -> its file
    tests: dict[str, int]  # graded test, a function of exercises/tests/<paper>.py -> points
    mutants: tuple[Change, ...]
    variations: tuple[tuple[Change, ...], ...] = ()  # of functions; the paper's own comes first
    hint: str = ""
    question: str = ""  # to be answered aloud
    docstrings: dict[str, str] = {}  # function -> a docstring that does not spell the code out
    hidden: tuple[str, ...] = ()  # "file" or "file::function": other copies of the solution
    blocked: tuple[str, ...] = ()  # functions of libraries that are not available
    fails: tuple[str, ...] = ()  # tests of the project that fail meanwhile, where it was recorded

    @property
    def paper(self) -> str:
        return self.id.rsplit("-", 1)[0]

    @property
    def files(self) -> list[str]:
        return sorted(set(self.functions.values()))

    def names_in(self, file: str) -> list[str]:
        return [name for name, its_file in self.functions.items() if its_file == file]

    def variation(self, seed: int | None) -> tuple[Change, ...]:
        """What the seed changes of the task; without a seed it is the paper's own."""
        if seed is None:
            return ()
        return random.Random(f"{seed}-{self.id}").choice([(), *self.variations])


class Bug(NamedTuple):
    """A mistake that is planted in the code."""

    file: str
    function: str
    change: Change  # says: what one sees of it, to a student
    hidden: tuple[str, ...] = ()  # tests that would find it: "file" or "file::function"


class Break(NamedTuple):
    """A bug to find: its file and function, and a test that fails because of it."""

    id: str
    title: str
    minutes: int
    bugs: tuple[Bug, ...]  # the seed draws one
    hint: str = ""
    question: str = ""

    @property
    def test_file(self) -> str:
        return f"test_{self.id.replace('-', '_')}.py"

    def bug(self, seed: int | None) -> Bug:
        return (
            self.bugs[0] if seed is None else random.Random(f"{seed}-{self.id}").choice(self.bugs)
        )


class Predict(NamedTuple):
    """A comparison of two rows: what is expected, with a reason, then what came out."""

    id: str
    title: str
    minutes: int
    commands: tuple[str, str]  # of the baseline and of the other row; without --seed
    rows: tuple[str, str]  # their methods or variants
    split: str  # a test set, or the mean of all
    what: str  # errors in words, or homophones
    hint: str = ""
    question: str = ""


Kind = Exercise | Break | Predict
POINTS_OF_BREAK = {"the file": 1, "the function": 1, "a test that finds it": 4}
POINTS_OF_PREDICT = {"a prediction with a reason": 2, "paired runs": 2, "what was measured": 2}


def points_of(exercise: Kind) -> dict[str, int]:
    """{what is graded: points}."""
    if isinstance(exercise, Break):
        return POINTS_OF_BREAK
    return POINTS_OF_PREDICT if isinstance(exercise, Predict) else exercise.tests


def all_exercises() -> dict[str, Kind]:
    found = {}
    for name in SETS:
        for exercise in importlib.import_module(f"exercises.sets.{name}").EXERCISES:
            found[exercise.id] = exercise
    return found
