"""python -m exercises list | make | grade: assignments, see docs/classroom.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from exercises.table import Exercise, all_exercises, points_of


def print_list() -> None:
    for exercise in all_exercises().values():
        points = sum(points_of(exercise).values())
        print(f"{exercise.id:13} {exercise.minutes:3} min {points:2} points  {exercise.title}")
        if isinstance(exercise, Exercise):
            print(f"{'':13} {', '.join(exercise.functions)} in {', '.join(exercise.files)}")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m exercises", description=__doc__)
    commands = found.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all exercises")
    made = commands.add_parser("make", help="write the folder that a student gets")
    made.add_argument("exercises", nargs="+", choices=all_exercises(), metavar="EXERCISE")
    made.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    graded = commands.add_parser("grade", help="grade folders that were handed in")
    graded.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    graded.add_argument("--exercise", nargs="+", choices=all_exercises(), metavar="EXERCISE")
    graded.add_argument("--json", type=Path, help="results.json for Gradescope")
    for command in (made, graded):
        command.add_argument("--seed", type=int, help="of the class: it draws the task's details")
    return found


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.command == "list":
        print_list()
        return 0
    from exercises import grade, make  # they import torch, which takes seconds

    if options.command == "make":
        if options.out.exists():
            sys.exit(f"{options.out} exists already: name a new folder.")
        make.make(options.exercises, options.out, options.seed)
        print(f"{options.out} is ready; it begins with {make.SHEET}.")
    else:
        grade.main(options.folders, options.exercise, options.seed, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
