"""Grades what no function of a student's computes: bugs found, and predictions."""

from __future__ import annotations

import math
import shutil
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.intervals import Interval, bootstrap_difference
from common.running import comparison
from common.running.sentences import Errors
from exercises import isolation, make
from exercises.table import Break, Predict

Rows = list[list[comparison.Scores]]  # of both rows; the same seeds in the same order

ANSWERS = "answers.toml"  # written before a run
MEASURED = "measured.toml"  # written behind it
WORDS = 10  # of a reason, at least
LARGEST = 20_000_000  # bytes of a file of a run that is read; the demo's have at most 3 million
READ = (".json", ".jsonl", ".tsv")


def read_toml(path: Path, id: str) -> dict[str, Any]:
    """What a student wrote under [id]; empty where nothing can be read."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get(id, {})
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_inside(path: Path, folder: Path) -> bool:
    """Whether it is a file of the folder, and no link to another place."""
    return path.is_file() and path.resolve() == folder.resolve() / path.relative_to(folder)


# ------------------------------------------------------------------------------------------ bugs


def grade_break(exercise: Break, folder: Path, seed: int | None) -> dict[str, str]:
    """{what is graded: empty, or what is wrong}."""
    bug = exercise.bug(seed)
    answer = read_toml(folder / ANSWERS, exercise.id)
    function = str(answer.get("function", ""))
    is_function = function in {bug.function, *bug.function.split(".")} and function != "forward"
    wrong_file = "" if answer.get("file") == bug.file else "It is not in this file."
    return {
        "the file": wrong_file,
        "the function": "" if is_function else "It is not in this function of this file.",
        "a test that finds it": grade_test(exercise, folder, seed),
    }


def grade_test(exercise: Break, folder: Path, seed: int | None) -> str:
    """The student's test has to pass on the master, and to fail with the bug."""
    path = folder / exercise.test_file
    if not is_inside(path, folder):
        return f"{exercise.test_file} is missing."
    with_the_bug = run_test(exercise, path, seed, planted=True)
    if isinstance(with_the_bug, str):
        return with_the_bug
    on_the_master = run_test(exercise, path, seed, planted=False)
    if isinstance(on_the_master, str):
        return on_the_master
    if on_the_master != 0:
        return "The test fails on the code without the bug, too."
    return "" if with_the_bug == 1 else "The test passes, or does not run, with the bug."


def run_test(exercise: Break, path: Path, seed: int | None, planted: bool) -> int | str:
    """pytest's exit code, or what went wrong."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        work = Path(place) / "work"
        make.workplace([], work)
        if planted:
            make.plant(exercise, work, seed)
        shutil.copy(path, work / path.name)
        return isolation.run({"test_file": path.name}, work)


# ----------------------------------------------------------------------------------- predictions


def grade_predict(exercise: Predict, folder: Path) -> dict[str, str]:
    """{what is graded: empty, or what is wrong}."""
    answer = read_toml(folder / ANSWERS, exercise.id)
    found = {"a prediction with a reason": judge_prediction(answer)}
    try:
        rows = rows_of(exercise, folder / "runs")
        found["paired runs"] = judge_runs(exercise, rows)
        found["what was measured"] = judge_measured(exercise, folder, rows)
    except (UserError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        said = f"The runs cannot be read: {error}"
        found |= {"paired runs": said, "what was measured": said}
    return found


def judge_prediction(answer: dict[str, Any]) -> str:
    if answer.get("expected") not in ("lower", "higher", "no difference"):
        return 'expected has to be "lower", "higher" or "no difference".'
    if len(str(answer.get("reason", "")).split()) < WORDS:
        return f"The reason has fewer than {WORDS} words."
    return ""


def rows_of(exercise: Predict, runs: Path) -> Rows:
    """The runs of both rows, those with a common seed, in the same order."""
    by_seed: list[dict[int, comparison.Scores]] = [{}, {}]
    for path in runs.rglob("*"):
        if path.suffix in READ and (path.is_symlink() or path.stat().st_size > LARGEST):
            raise ValueError(f"{path.name} is a link, or larger than {LARGEST // 10**6} MB.")
    for path in sorted(runs.rglob("result.json")):
        run = comparison.read_scores(path.parent)
        name = run.result.get("variant") or run.result["method"]
        if path.parent == run.run and name in exercise.rows:
            by_seed[exercise.rows.index(name)][run.result["seed"]] = run
    common = sorted(by_seed[0].keys() & by_seed[1].keys())
    baseline, system = by_seed
    return [[baseline[seed] for seed in common], [system[seed] for seed in common]]


def judge_runs(exercise: Predict, rows: Rows) -> str:
    if len(rows[0]) >= 2:
        return ""
    return (
        f"At least two seeds of {exercise.rows[0]} and of {exercise.rows[1]} are needed in runs/."
    )


def judge_measured(exercise: Predict, folder: Path, rows: Rows) -> str:
    """Compares the difference and the interval with those recomputed from the runs."""
    written = read_toml(folder / MEASURED, exercise.id)
    try:
        mine = Interval(*(float(written[name]) for name in ("difference", "low", "high")))
    except (KeyError, TypeError, ValueError):
        return f"{MEASURED} has no difference, low and high under [{exercise.id}]."
    if not rows[0]:
        return "There are no runs with a common seed to recompute it from."
    right = measure(exercise, rows)
    if agree(mine, right):
        return ""
    said = f"expected {show(right)}, got {show(mine)}"
    for wrong, says in known_mistakes(exercise, rows, right):
        if agree(mine, wrong):
            return f"{said}\n{says}"
    return said


def known_mistakes(exercise: Predict, rows: Rows, right: Interval) -> list[tuple[Interval, str]]:
    opposite = Interval(-right.difference, -right.high, -right.low)
    found = [(opposite, "The sign is wrong: it is the second row minus the first.")]
    for i in range(len(rows[0])):
        one = measure(exercise, [[runs[i]] for runs in rows])
        found.append((one, f"This is one seed of {len(rows[0])}: all of them count."))
    sides = [interval_of(exercise, runs) for runs in rows]
    half = math.hypot(*((side.high - side.low) / 2 for side in sides))
    unpaired = Interval(right.difference, right.difference - half, right.difference + half)
    says = "This is not paired: seeds and sentences are the same on both sides."
    return [*found, (unpaired, says)]


def measure(exercise: Predict, rows: Rows) -> Interval:
    """The second row minus the first, in points; paired by seeds and sentences."""
    *_, sentences, languages = counts_of(exercise, rows[0])
    baseline, system = (counts_of(exercise, runs)[:2] for runs in rows)
    return bootstrap_difference(baseline, system, sentences, languages)


def interval_of(exercise: Predict, runs: list[comparison.Scores]) -> Interval:
    """That of a row by itself."""
    errors, counts, sentences, languages = counts_of(exercise, runs)
    nothing = (np.zeros_like(errors), counts)
    return bootstrap_difference(nothing, (errors, counts), sentences, languages)


def counts_of(
    exercise: Predict, runs: list[comparison.Scores]
) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Errors and counts (seeds, utterances), then sentence and language of each."""
    sets = list(runs[0].errors) if exercise.split == comparison.MEAN else [exercise.split]
    names = [(split, name) for split in sets for name in runs[0].errors[split]]
    counts = []
    for run in runs:
        counts.append([_counts(run.errors[split][name], exercise) for split, name in names])
    table = np.array(counts)  # (seeds, utterances, 2)
    sentences = ["\t".join(name) for name in names]
    return table[..., 0], table[..., 1], sentences, [split for split, _ in names]


def _counts(errors: Errors, exercise: Predict) -> tuple[int, int]:
    """(errors, out of how many) of an utterance."""
    if exercise.what == comparison.HOMOPHONES:
        return errors.twins, errors.homophones
    return errors.count, errors.units


def agree(a: Interval, b: Interval) -> bool:
    """Up to what drawing anew changes."""
    tolerance = 0.05 * (b.high - b.low) + 0.02
    is_near = abs(a.difference - b.difference) <= tolerance
    return is_near and abs(a.low - b.low) <= 2 * tolerance and abs(a.high - b.high) <= 2 * tolerance


def show(interval: Interval) -> str:
    return f"{interval.difference:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
