"""Writes the folder that a student gets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exercises import master, source
from exercises.table import MASTER, Break, Exercise, Kind, Predict, all_exercises, points_of

# Not for students: history, results, the master copy, and what a run leaves behind.
LEFT_OUT = (
    *(".*", "__pycache__", "runs", "data", "results", "RESULTS.md"),
    *("exercises", "test_exercises.py", "other_ways.py", "classroom.md", "test_readme.py"),
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
        if isinstance(exercise, Exercise):
            write_texts(exercise, out, seed)
            hide(exercise.hidden, out)
            expected[exercise.id] = expectation(exercise, out, seed)
        elif isinstance(exercise, Break):
            plant(exercise, out, seed)
            hide(exercise.bug(seed).hidden, out)
            expected[exercise.id] = {"test_file": exercise.test_file}
    shutil.copy(MASTER / "exercises/tests/__init__.py", out / "exercises/tests/__init__.py")
    write_json(out / "exercises" / "expected.json", expected)
    write_json(out / "exercises" / "made.json", {"exercises": list(ids), "seed": seed})
    (out / SHEET).write_text(sheet(chosen, seed), encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def expectation(exercise: Exercise, out: Path, seed: int | None) -> dict[str, Any]:
    """What exercises/check.py compares with; and it gets the tests."""
    tests = f"exercises/tests/{exercise.paper}.py"
    shutil.copy(MASTER / tests, out / tests)
    return {
        "paper": exercise.paper,
        "files": exercise.files,
        "blocked": exercise.blocked,
        "tests": master.answers(exercise.id, seed, "check"),
    }


def plant(exercise: Break, out: Path, seed: int | None) -> None:
    bug = exercise.bug(seed)
    text = (out / bug.file).read_text(encoding="utf-8")
    text, _ = source.change(text, [bug.function], (bug.change,))
    (out / bug.file).write_text(text, encoding="utf-8")


def write_texts(exercise: Exercise, out: Path, seed: int | None) -> None:
    """The files of the exercise without its functions' bodies."""
    for file in exercise.files:
        path = out / file
        if not path.exists():  # of exercises/, which is not handed out as a whole
            shutil.copy(MASTER / file, path)
        text = path.read_text(encoding="utf-8")
        names = exercise.names_in(file)
        text, _ = source.change(text, names, exercise.variation(seed))
        for name in names:
            text = source.strip(text, name, f"{exercise.id}: {name}", exercise.docstrings.get(name))
        path.write_text(text, encoding="utf-8")


def hide(places: Sequence[str], out: Path) -> None:
    """Removes other copies of a solution: "file" or "file::function"."""
    for place in places:
        file, _, name = place.partition("::")
        path = out / file
        if not name:
            path.unlink(missing_ok=True)
        elif path.exists() and name in dict(source.functions_of(path.read_text())):
            path.write_text(source.remove(path.read_text(), name))


def sheet(chosen: Sequence[Kind], seed: int | None) -> str:
    """The student's README."""
    lines = ["# Your exercises", ""]
    for exercise in chosen:
        points = sum(points_of(exercise).values())
        lines.append(
            f"**{exercise.id}: {exercise.title}** ({exercise.minutes} minutes, {points} points)."
        )
        if isinstance(exercise, Exercise):
            lines += to_write(exercise, seed)
        elif isinstance(exercise, Break):
            lines += to_find(exercise, seed)
        else:
            lines += to_predict(exercise)
        lines += [f"Hint: {exercise.hint}", f"To be answered aloud: {exercise.question}", ""]
    lines.append("README.md says how the project is installed and how a script is read. Some of")
    lines.append("its links lead to results, which are not handed out.")
    return "\n".join(lines) + "\n"


def to_write(exercise: Exercise, seed: int | None) -> list[str]:
    places = [f"`{name}` in `{file}`" for name, file in exercise.functions.items()]
    says = [change.says for change in exercise.variation(seed) if change.says]
    variation = [f"**In your class: {sentence}**" for sentence in says]
    if says:
        variation += [
            "The equations at the top of the file, and the project's own tests, have the form of",
            "the paper: where yours is right, such a test may fail.",
        ]
    return [
        f"Write {' and '.join(places)}. The docstring says what it returns.",
        *variation,
        "Test it in seconds: `python -m exercises.check`. The grader does the same with other",
        "numbers. It takes these files from you, and no other file.",
    ]


def to_find(exercise: Break, seed: int | None) -> list[str]:
    return [
        f"There is a mistake in the code. {exercise.bug(seed).change.says}",
        f"Write a test, `{exercise.test_file}`, that fails because of it and passes without it:",
        "run it with pytest, repair the mistake, see it pass, put the mistake back. A model with",
        "random weights shows it too; dropout makes every test fail, so mind `.eval()`. Write into",
        "answers.toml where the mistake is. Both files stand beside this one, and only they are",
        "graded. `python -m exercises.check` looks at their form.",
        "",
        f"    [{exercise.id}]",
        '    file = "common/…"',
        '    function = "Class.method, or function"',
        "",
    ]


def to_predict(exercise: Predict) -> list[str]:
    unit = "homophone errors" if "homophone" in exercise.what else "the error rate"
    first, second = exercise.rows
    return [
        f"Compare {unit} ({exercise.split}) of `{second}` with `{first}`. Before you train, write",
        "into answers.toml (lower, higher or no difference; and why, in a sentence or two):",
        "",
        f"    [{exercise.id}]",
        '    expected = "lower"',
        '    reason = "…"',
        "",
        "Then train both, with two seeds at least, and leave the runs in runs/:",
        "",
        *(f"    {command} --seed 1" for command in exercise.commands),
        "",
        f"Write the difference `{second}` minus `{first}` in points, over all seeds, and its 95 %",
        "interval, paired by seed and sentence (common/intervals.py), into measured.toml:",
        "",
        f"    [{exercise.id}]",
        "    difference = 0.0",
        "    low = 0.0",
        "    high = 0.0",
        "",
    ]


def workplace(files: Sequence[str], out: Path) -> None:
    """The folder in which a test runs: the master's code without these files."""
    out.mkdir(parents=True)
    for path in MASTER.glob("*.py"):
        shutil.copy(path, out / path.name)
    no_caches = shutil.ignore_patterns("__pycache__")
    for name in ("common", "variants"):
        shutil.copytree(MASTER / name, out / name, ignore=no_caches)
    shutil.copytree(MASTER / "exercises" / "tests", out / "exercises" / "tests", ignore=no_caches)
    for name in (*HANDED_OUT, "child.py"):
        shutil.copy(MASTER / "exercises" / name, out / "exercises" / name)
    for file in files:
        (out / file).unlink(missing_ok=True)  # the student's comes in its place
