"""Writes the folder that a student gets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from exercises import master, source
from exercises.table import MASTER, Change, Exercise, all_exercises

# Not for students: history, results, the master copy, and what a run leaves behind.
LEFT_OUT = (
    *(".*", "__pycache__", "runs", "data", "results", "RESULTS.md"),
    *("exercises", "test_exercises.py", "classroom.md"),
)
HANDED_OUT = ("__init__.py", "check.py")  # of exercises/
SHEET = "EXERCISE.md"


def make(ids: Sequence[str], out: Path, seed: int | None = None) -> None:
    """The repository without the solutions of these exercises, and their tests."""
    chosen = [all_exercises()[id] for id in ids]
    shutil.copytree(MASTER, out, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (out / "exercises" / "tests").mkdir(parents=True)
    for name in HANDED_OUT:
        shutil.copy(MASTER / "exercises" / name, out / "exercises" / name)
    expected = {}
    for exercise in chosen:
        write_texts(exercise, out, seed)
        hide(exercise, out)
        expected[exercise.id] = {
            "paper": exercise.paper,
            "files": exercise.files,
            "blocked": exercise.blocked,
            "tests": master.answers(exercise.id, seed, "check"),
        }
    for name in ("__init__", *{exercise.paper for exercise in chosen}):
        file = f"exercises/tests/{name}.py"
        shutil.copy(MASTER / file, out / file)
    with (out / "exercises" / "expected.json").open("w", encoding="utf-8") as file:
        json.dump(expected, file)
    marker = {"exercises": list(ids), "seed": seed}
    (out / "exercises" / "made.json").write_text(json.dumps(marker) + "\n", encoding="utf-8")
    (out / SHEET).write_text(sheet(chosen, seed), encoding="utf-8")


def write_texts(exercise: Exercise, out: Path, seed: int | None) -> None:
    """The files of the exercise without its functions' bodies."""
    given = {file: out / file for file in exercise.files}
    for file, path in given.items():
        if not path.exists():  # of exercises/, which is not handed out as a whole
            shutil.copy(MASTER / file, path)
        text = path.read_text(encoding="utf-8")
        names = [name for name, its_file in exercise.functions.items() if its_file == file]
        mine = mine_of(exercise.variation(seed), text, names)
        text = source.change(text, names, mine)
        for name in names:
            text = source.strip(text, name, f"{exercise.id}: {name}", exercise.docstrings.get(name))
        path.write_text(text, encoding="utf-8")


def mine_of(changes: tuple[Change, ...], text: str, names: list[str]) -> tuple[Change, ...]:
    """Those of the changes that belong to these functions of the text."""
    lines = text.splitlines(keepends=True)
    functions = ""
    for name in names:
        start, end = source.lines_of(text, name)
        functions += "".join(lines[start:end])
    return tuple(change for change in changes if change.old in functions)


def hide(exercise: Exercise, out: Path) -> None:
    """Removes other copies of the solution."""
    for place in exercise.hidden:
        file, _, name = place.partition("::")
        path = out / file
        if not name:
            path.unlink(missing_ok=True)
        elif path.exists() and name in dict(source.functions_of(path.read_text())):
            path.write_text(source.remove(path.read_text(), name))


def sheet(chosen: list[Exercise], seed: int | None) -> str:
    """The student's README."""
    lines = ["# Your exercises", ""]
    for exercise in chosen:
        lines += task(exercise, seed)
    lines += [
        "Test your solutions in seconds: `python -m exercises.check`. The grader does the same,",
        "with other numbers. It takes the files named here, and no other file that you change.",
        "README.md says how the project is installed and how a script is read.",
    ]
    return "\n".join(lines) + "\n"


def task(exercise: Exercise, seed: int | None) -> list[str]:
    """The lines of one exercise."""
    places = [f"`{name}` in `{file}`" for name, file in exercise.functions.items()]
    points = sum(exercise.tests.values())
    says = [change.says for change in exercise.variation(seed) if change.says]
    return [
        f"**{exercise.id}: {exercise.title}** ({exercise.minutes} minutes, {points} points).",
        f"Write {' and '.join(places)}. The docstring says what it returns.",
        *(f"**In your class: {sentence}**" for sentence in says),
        f"Hint: {exercise.hint}",
        f"Question, to be answered aloud: {exercise.question}",
        "",
    ]


def workplace(exercise: Exercise, out: Path) -> None:
    """The folder in which a graded test runs: the master's code without the solution."""
    out.mkdir(parents=True)
    for path in MASTER.glob("*.py"):
        shutil.copy(path, out / path.name)
    no_caches = shutil.ignore_patterns("__pycache__")
    for name in ("common", "variants"):
        shutil.copytree(MASTER / name, out / name, ignore=no_caches)
    shutil.copytree(MASTER / "exercises" / "tests", out / "exercises" / "tests", ignore=no_caches)
    for name in (*HANDED_OUT, "child.py"):
        shutil.copy(MASTER / "exercises" / name, out / "exercises" / name)
    for file in exercise.files:
        (out / file).unlink(missing_ok=True)  # the student's comes in its place
