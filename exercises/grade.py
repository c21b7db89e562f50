"""Grades folders that were handed in: a table, and results.json for Gradescope.

Each graded test runs in a process of its own. Only the files of an exercise are taken
from a student; all others, the tests too, are the master's. The student's process has
no solution, it only computes; this process compares. These limits are no sandbox: see
docs/classroom.md.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from exercises import check, isolation, judging, make, master
from exercises.table import Break, Exercise, Kind, all_exercises, points_of


class Graded(NamedTuple):
    """A graded test of one submission."""

    name: str
    score: int
    max_score: int
    output: str


def main(
    folders: list[Path], ids: list[str] | None, seed: int | None, json_file: Path | None
) -> list[list[Graded]]:
    """Prints a table for each submission, and writes one file of results for each."""
    if isolation.warning():
        print(isolation.warning(), file=sys.stderr)
    found = []
    for number, folder in enumerate(folders, 1):
        graded = grade_folder(folder, ids, seed)
        print_table(folder, graded)
        found.append(graded)
        if json_file is not None:
            several = len(folders) > 1
            name = f"{json_file.stem}-{number}-{folder.resolve().name}{json_file.suffix}"
            write_results(json_file.with_name(name) if several else json_file, graded)
    return found


def grade_folder(folder: Path, ids: list[str] | None, seed: int | None) -> list[Graded]:
    """ids, seed: what the lecturer says; else what was noted when the folder was made,
    which a student may have changed."""
    try:
        noted = json.loads((folder / "exercises" / "made.json").read_text(encoding="utf-8"))
        noted_seed = None if noted["seed"] is None else int(noted["seed"])
        noted_ids = [str(id) for id in noted["exercises"] if str(id) in all_exercises()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if ids is None:
            return [Graded("exercises/made.json", 0, 0, check.last_words(error))]
        noted_seed = None
        noted_ids = []
    seed = noted_seed if seed is None else seed
    chosen = [all_exercises()[id] for id in ids or noted_ids]
    graded = []
    for exercise in chosen:
        if isinstance(exercise, Exercise):
            graded += grade_exercise(exercise, folder, seed)
        elif isinstance(exercise, Break):
            graded += in_points(exercise, judging.grade_break(exercise, folder, seed))
        else:
            graded += in_points(exercise, judging.grade_predict(exercise, folder))
    return graded


def in_points(exercise: Kind, problems: dict[str, str]) -> list[Graded]:
    """{what is graded: empty, or what is wrong} with its points."""
    graded = []
    for name, points in points_of(exercise).items():
        problem = problems[name]
        score = 0 if problem else points
        graded.append(Graded(f"{exercise.id}: {name}", score, points, problem))
    return graded


def grade_exercise(exercise: Exercise, folder: Path, seed: int | None) -> list[Graded]:
    graded = []
    with tempfile.TemporaryDirectory() as place:
        handed_in = Path(place) / "handed_in"
        problem = take(exercise, folder, handed_in)
        for name, test in master.answers(exercise.id, seed, "grade").items():
            if not problem:
                output = run_test(exercise, name, handed_in, test)
            else:
                output = problem
            first_line = check.find_test(exercise.paper, name).__doc__.splitlines()[0]
            score = 0 if output else test["points"]
            graded.append(Graded(f"{exercise.id}: {first_line}", score, test["points"], output))
    return graded


def take(exercise: Exercise, folder: Path, place: Path) -> str:
    """Copies the files of the exercise; what is wrong with them, if anything."""
    for file in exercise.files:
        path = folder / file
        if not judging.is_inside(path, folder):
            return f"{file} is missing."
        if path.stat().st_size > 1_000_000:
            return f"{file} is longer than a megabyte."
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / file)
    return ""


def run_test(exercise: Exercise, name: str, handed_in: Path, test: dict) -> str:
    """Runs one test in a fresh folder. Empty if it passed; else what went wrong."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        work = Path(place) / "work"
        make.workplace(exercise.files, work)
        shutil.copytree(handed_in, work, dirs_exist_ok=True)
        task = {
            "paper": exercise.paper,
            "name": name,
            "files": exercise.files,
            "blocked": exercise.blocked,
            "draw": "grade",
        }
        got = isolation.run(task, work)
    if isinstance(got, str):
        return got
    try:
        return check.explain(test, got)
    except (AttributeError, KeyError, TypeError, ValueError):
        return "It wrote a result that cannot be read."


def print_table(folder: Path, graded: list[Graded]) -> None:
    score = sum(test.score for test in graded)
    print(f"{folder}: {score} of {sum(test.max_score for test in graded)} points")
    for test in graded:
        print(f"  {test.score:2} of {test.max_score}  {test.name}")
        if test.output:
            print("           " + test.output.replace("\n", "\n           "))


def write_results(path: Path, graded: list[Graded]) -> None:
    """https://gradescope-autograders.readthedocs.io/en/latest/specs"""
    tests = [test._asdict() for test in graded]
    path.write_text(json.dumps({"tests": tests}, indent=1) + "\n", encoding="utf-8")
