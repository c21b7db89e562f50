"""What comes out of the master's solution, and out of known wrong ones."""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

from exercises import check, source
from exercises.table import MASTER, Change, Exercise


def text_of(file: str) -> str:
    return (MASTER / file).read_text(encoding="utf-8")


def changed_texts(exercise: Exercise, changes: tuple[Change, ...]) -> dict[str, str]:
    """{file: its text} for the files of an exercise, with changes in its functions.

    Raises ValueError for a change without a place.
    """
    texts = {}
    for file in exercise.files:
        texts[file], changes = source.change(text_of(file), exercise.names_in(file), changes)
    if changes:
        raise ValueError(f"{exercise.id}: no place for: {changes[0].old}")
    return texts


def load(file: str, text: str) -> ModuleType:
    """A module of this text, beside the one that was imported."""
    name = f"master_{abs(hash(text))}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(MASTER / file)
        sys.modules[name] = module
        exec(compile(text, module.__file__, "exec"), module.__dict__)
    return sys.modules[name]


def code_of(exercise: Exercise, changes: tuple[Change, ...]) -> SimpleNamespace:
    texts = changed_texts(exercise, changes)
    return SimpleNamespace(
        **{file.rpartition("/")[2][:-3]: load(file, text) for file, text in texts.items()}
    )


@cache
def answers(id: str, seed: int | None, draw: str) -> dict[str, dict[str, Any]]:
    """{test: {points, expected, wrong}}, as `check.explain` takes it."""
    from exercises.table import all_exercises

    exercise = all_exercises()[id]
    varied = exercise.variation(seed)
    found = {}
    for name, points in exercise.tests.items():
        right = check.compute(exercise.paper, name, code_of(exercise, varied), draw)
        wrong = []
        if varied:
            papers = check.compute(exercise.paper, name, code_of(exercise, ()), draw)
            if check.difference(right, papers):
                says = "This is the form of the paper: in your class it is another one."
                wrong.append((says, papers))
        for mutant in exercise.mutants:
            got = wrong_result(exercise, name, (*varied, mutant), draw)
            if got is not None and check.difference(right, got):
                wrong.append((mutant.says, got))
        found[name] = {"points": points, "expected": right, "wrong": wrong}
    return found


def wrong_result(
    exercise: Exercise, name: str, changes: tuple[Change, ...], draw: str
) -> dict[str, Any] | None:
    """What a mutant computes; None if it fails with an error, or does not fit the
    variation."""
    try:
        return check.compute(exercise.paper, name, code_of(exercise, changes), draw)
    except Exception:
        return None
