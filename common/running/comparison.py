"""Finished runs beside each other: rows, their scores, and whether they differ for
certain.

    rows = read_rows(["runs/x/ctc", "runs/x/interaed_kd"])    the first is the baseline
    scores(rows), kinds_of_errors(rows), sentences_of(rows)

Runs that differ in the seed alone make one row. What is read are the files that a run
wrote when it was scored; no model is loaded.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from common import metrics
from common.errors import UserError
from common.figures import read_log
from common.intervals import Interval, bootstrap_difference
from common.running import command_line
from common.running.hypotheses import Scored, read_scored
from common.running.sentences import Errors, Sentence, errors_of

MEAN = "mean of the sets"
HOMOPHONES = "homophones written as their twin"


@dataclass(frozen=True, eq=False)
class Scores:
    """The files of a finished run, or of its scores on other data."""

    folder: Path  # with result.json and the hypotheses
    run: Path  # with config.json and the log
    result: dict[str, Any]
    about: dict[str, Any]  # scored.json; empty where an older version wrote the run
    config: dict[str, Any]  # options of the run

    @functools.cached_property
    def sets(self) -> dict[str, dict[str, Scored]]:
        """{test set: {utterance: what was recognised}}."""
        found = {}
        for split in self.result["wer"]:
            # A run of several languages one by one has them in folders of their own.
            paths = [self.folder / f"hyp_{split}.tsv", *self.folder.glob(f"*/hyp_{split}.tsv")]
            path = next((path for path in paths if path.exists()), None)
            if path is None:
                raise UserError(f"{self.folder} has no hyp_{split}.tsv: score the run again.")
            found[split] = {scored.id: scored for scored in read_scored(path)}
        return found

    @functools.cached_property
    def errors(self) -> dict[str, dict[str, Errors]]:
        """{test set: {utterance: its errors}}."""
        found = {}
        for split, scored in self.sets.items():
            references = [one.reference for one in scored.values()]
            hypotheses = [one.hypothesis for one in scored.values()]
            counted = errors_of(references, hypotheses, self.twins, split in self.by_characters)
            found[split] = dict(zip(scored, counted, strict=True))
        return found

    @property
    def twins(self) -> dict[str, str]:
        return self.about.get("homophones", {})

    @functools.cached_property
    def by_characters(self) -> set[str]:
        """Test sets whose errors are counted in characters, as in
        `evaluation.mean_error`."""
        found = set()
        for split, scored in self.sets.items():
            if metrics.written_without_spaces(one.reference for one in scored.values()):
                found.add(split)
        return found

    def log(self) -> list[dict[str, Any]]:
        return read_log(self.run) if (self.run / "log.jsonl").exists() else []


class Row(NamedTuple):
    """A method or variant: a run per seed."""

    name: str
    runs: list[Scores]

    @property
    def first(self) -> Scores:
        return self.runs[0]

    @property
    def seeds(self) -> list[int]:
        return [run.result["seed"] for run in self.runs]


def read_rows(folders: list[str | Path]) -> list[Row]:
    """Rows in the order of their first runs, with names of their own. Raises
    UserError."""
    rows: dict[str, Row] = {}
    for folder in folders:
        run = read_scores(Path(folder))
        same = {name: value for name, value in run.config.items() if name != "seed"}
        kind = [run.result["script"], run.result.get("variant"), sorted(run.result["wer"])]
        key = json.dumps([*kind, run.result["decode"], same], sort_keys=True)
        name = run.result.get("variant") or run.result["method"]
        if key in rows and run.result["seed"] in rows[key].seeds:
            key += str(folder)  # the same again, or a copy that was changed
        rows.setdefault(key, Row(name, [])).runs.append(run)
    found = list(rows.values())
    sets = [tuple(row.first.result["wer"]) for row in found]
    if len(set(sets)) > 1:
        raise UserError("the runs were scored on different test sets: score them on the same.")
    names = Counter(row.name for row in found)
    return [row if names[row.name] == 1 else row._replace(name=_longer(row)) for row in found]


def _longer(row: Row) -> str:
    return f"{row.name} ({'/'.join(row.first.folder.absolute().parts[-2:])})"


def read_scores(folder: Path) -> Scores:
    """The scores in a folder, of the run there or above it. Raises UserError."""
    result = read_json(folder / "result.json")
    if not isinstance(result, dict) or not result.get("wer"):
        raise UserError(f"{folder} has no result.json: give the folder of a finished run.")
    candidates = [folder, folder.absolute().parent, Path(result.get("run", folder))]
    run = next((path for path in candidates if command_line.is_run(path)), folder)
    config = command_line.read_stored(run)["config"] if command_line.is_run(run) else {}
    return Scores(folder, run, result, read_json(folder / "scored.json") or {}, config)


def read_json(path: Path) -> Any:
    """What a file holds; None where there is none. Raises UserError where it is
    damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): score the run again.") from None


# ====================================================================================== scores


class Cell(NamedTuple):
    """A row's score on a test set."""

    row: str
    seeds: list[int]  # those of the interval
    rate: float  # per cent, the mean over seeds
    interval: Interval | None  # of the difference to the baseline; None: it is the baseline

    @property
    def verdict(self) -> str:
        if self.interval is None:
            return "baseline"
        if self.interval.low * self.interval.high <= 0:
            return "not certain"
        return "better" if self.interval.high < 0 else "worse"


class Table(NamedTuple):
    """A score on a test set, of all rows."""

    split: str
    what: str  # errors in words, errors in characters, or HOMOPHONES
    cells: list[Cell]


def scores(rows: list[Row]) -> list[Table]:
    """Errors on every test set, then homophone errors; of several languages the mean
    comes first."""
    result = rows[0].first.result
    splits = list(result["wer"])
    groups = [[split] for split in splits]
    if "wer_mean" in result:
        groups = [splits, *groups]
    tables = []
    for group in groups:
        by_characters = rows[0].first.by_characters & set(group)
        unit = "words" if not by_characters else "characters"
        if by_characters and len(by_characters) < len(group):
            unit = "words or characters"
        tables.append(_table(rows, group, f"errors in {unit}"))
    if rows[0].first.twins:
        tables += [_table(rows, [split], HOMOPHONES) for split in splits]
    return tables


def _table(rows: list[Row], group: list[str], what: str) -> Table:
    cells = []
    for row in rows:
        rates = [_rate(run, group, what) for run in row.runs]
        interval, seeds = None, row.seeds
        if row is not rows[0]:
            interval, seeds = _interval(rows[0], row, group, what)
        cells.append(Cell(row.name, seeds, fmean(rates), interval))
    return Table(group[0] if len(group) == 1 else MEAN, what, cells)


def _counts(errors: Errors, what: str) -> tuple[int, int]:
    """(errors, out of how many) of an utterance."""
    if what == HOMOPHONES:
        return errors.twins, errors.homophones
    return errors.count, errors.units


def _rate(run: Scores, group: list[str], what: str) -> float:
    """In per cent; of several sets the unweighted mean."""
    rates = []
    for split in group:
        counts = [_counts(errors, what) for errors in run.errors[split].values()]
        wrong, out_of = np.sum(counts, axis=0)
        rates.append(100 * wrong / max(out_of, 1))
    return fmean(rates)


def _interval(
    baseline: Row, row: Row, group: list[str], what: str
) -> tuple[Interval | None, list[int]]:
    """The paired bootstrap over sentences, and the seeds that both rows have.

    Rows without a common seed are compared by the first run of each.
    """
    pairs = [
        (a, b) for b in row.runs for a in baseline.runs if a.result["seed"] == b.result["seed"]
    ]
    pairs = pairs or [(baseline.first, row.first)]
    names, languages = [], []
    for split in group:
        common = [name for name in pairs[0][0].errors[split]]
        for pair in pairs:
            for run in pair:
                common = [name for name in common if name in run.errors[split]]
        names += [(split, name) for name in common]
        languages += [split] * len(common)
    if not names:
        return None, []

    def table(runs: list[Scores]) -> tuple[np.ndarray, np.ndarray]:
        counts = []
        for run in runs:
            counts.append([_counts(run.errors[split][name], what) for split, name in names])
        array = np.array(counts)  # (seeds, utterances, 2)
        return array[..., 0], array[..., 1]

    sides = table([a for a, _ in pairs]), table([b for _, b in pairs])
    sentences = ["\t".join(name) for name in names]
    return bootstrap_difference(*sides, sentences, languages), [b.result["seed"] for _, b in pairs]


# =============================================================================== kinds of errors


class Kinds(NamedTuple):
    """The errors of a row's first run on all test sets."""

    row: str
    counts: dict[str, int]
    confusions: list[tuple[str, str, int, bool]]  # said, written, how often, whether homophones


def kinds_of_errors(rows: list[Row]) -> list[Kinds]:
    found = []
    for row in rows:
        every = [errors for split in row.first.errors.values() for errors in split.values()]
        twins = sum(errors.twins for errors in every)
        counts = {
            "a word that sounds different": sum(errors.wrong for errors in every) - twins,
            "the homophone": twins,
            "a missing word": sum(errors.missing for errors in every),
            "a word too many": sum(errors.extra for errors in every),
        }
        if not row.first.twins:
            counts = {"another word": counts.pop("a word that sounds different"), **counts}
            counts.pop("the homophone")
        pairs = Counter(pair for errors in every for pair in errors.confusions)
        frequent = []
        for (said, written), count in pairs.most_common(10):
            frequent.append((said, written, count, row.first.twins.get(said) == written))
        found.append(Kinds(row.name, counts, frequent))
    return found


def sentences_of(rows: list[Row]) -> list[Sentence]:
    """The utterances that every row's first run has."""
    found = []
    for split, scored in rows[0].first.sets.items():
        for name in scored:
            ones = [row.first.sets[split].get(name) for row in rows]
            if None in ones:
                continue
            errors = tuple(row.first.errors[split][name] for row in rows)
            differs = len({one.hypothesis for one in ones}) > 1
            found.append(Sentence(split, name, errors, differs))
    return found
