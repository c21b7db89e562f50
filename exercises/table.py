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
SETS = ("week0", "interaed", "multirep", "streaming", "hubert", "llm")


class Change(NamedTuple):
    """A replacement in the exercise's functions. `says`: what it means, to a student.

    As a mutant it is a known wrong solution, and `says` names the mistake. As a
    variation it is another task, and `says` goes into the student's README.
    """

    old: str
    new: str
    says: str


class Exercise(NamedTuple):
    """A row of the table."""

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
    fails: tuple[str, ...] = ()  # other tests that fail meanwhile, where it was recorded

    @property
    def paper(self) -> str:
        return self.id.rsplit("-", 1)[0]

    @property
    def files(self) -> list[str]:
        return sorted(set(self.functions.values()))

    def variation(self, seed: int | None) -> tuple[Change, ...]:
        """What the seed changes of the task; without a seed it is the paper's own."""
        if seed is None:
            return ()
        return random.Random(f"{seed}-{self.id}").choice([(), *self.variations])


def all_exercises() -> dict[str, Exercise]:
    found = {}
    for name in SETS:
        for exercise in importlib.import_module(f"exercises.sets.{name}").EXERCISES:
            found[exercise.id] = exercise
    return found
