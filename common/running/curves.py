"""Learning curves of several runs, as lines of an SVG picture: a panel per quantity of
their logs."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

# Where a panel's lines are drawn, in units of the picture.
WIDTH, HEIGHT = 330, 196
LEFT, RIGHT = 44, 310
TOP, BOTTOM = 12, 164
POINTS = 120  # of a line, at most; a longer log is averaged [choice]
TITLES = {
    "loss": "training loss, nats per utterance",
    "dev": "dev error, %",
    "dev_homophone_error": "dev errors at homophones, %",
    "listening_gap": "listening gap, nats per piece",
}
NO_CURVE = {"step", "epoch", "utterances", "norm", "lr", "clock"}  # of the log
# A recogniser that has not found its alignments writes next to nothing, so that nearly all words
# count as errors; a language model that does not listen has a gap of nearly 0 [choice].
DEV_OF_FOUND = 80.0  # per cent
GAP_OF_FOUND = 0.1  # nats per piece


class Line(NamedTuple):
    row: int  # the number of the row that it belongs to
    points: list[tuple[float, float]]  # in units of the picture
    dots: bool  # a value per epoch is drawn as a dot


class Panel(NamedTuple):
    title: str
    lines: list[Line]
    moments: list[tuple[int, float]]  # (row, x) where a row found its alignments
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def found_alignments(log: list[dict[str, Any]]) -> int | None:
    """The update after which a run was first seen to follow the audio; None: never."""
    listens = any("listening_gap" in entry for entry in log)
    for entry in log:
        gap_is_there = entry.get("listening_gap", -math.inf) >= GAP_OF_FOUND
        words_are_there = entry.get("dev", math.inf) < DEV_OF_FOUND
        if gap_is_there if listens else words_are_there:
            return entry["step"]
    return None


def panels(logs: list[tuple[int, list[dict[str, Any]]]]) -> list[Panel]:
    """logs: (number of the row, log.jsonl of a run of it)."""
    series: dict[str, list[tuple[int, list[tuple[int, float]]]]] = {}
    for row, log in logs:
        for name, points in _series(log).items():
            series.setdefault(name, []).append((row, points))
    moments = [(row, found_alignments(log)) for row, log in logs]
    names = sorted(series, key=lambda name: (name not in TITLES, name != "loss"))
    found = []
    for name in names:
        title = TITLES.get(name, f"{name.replace('_', ' ')}, a part of the loss")
        found.append(_panel(title, series[name], moments))
    return found


def _series(log: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """{quantity: [(update, value), ...]}; of a part that has parts, their mean."""
    series: dict[str, list[tuple[int, float]]] = {}
    for entry in log:
        for name, value in entry.items():
            if name in NO_CURVE:
                continue
            if isinstance(value, dict) and value:
                value = sum(value.values()) / len(value)
            if isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(name, []).append((entry["step"], value))
    return {name: _averaged(points) for name, points in series.items()}


def _averaged(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most POINTS points, each the mean of its neighbours."""
    parts = min(len(points), POINTS)
    bounds = [round(i * len(points) / parts) for i in range(parts + 1)]
    found = []
    for start, end in pairwise(bounds):
        steps, values = zip(*points[start:end], strict=True)
        found.append((steps[-1], sum(values) / len(values)))
    return found


def _panel(
    title: str,
    series: list[tuple[int, list[tuple[int, float]]]],
    moments: list[tuple[int, int | None]],
) -> Panel:
    values = [value for _, points in series for _, value in points]
    last = max(step for _, points in series for step, _ in points)
    low = min(0.0, *values)
    high = max(values)
    if high <= low:
        high = low + 1

    def x(step: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * step / last, 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low), 1)

    lines = []
    for row, points in series:
        drawn = [(x(step), y(value)) for step, value in points]
        lines.append(Line(row, drawn, dots=len(points) <= 30))
    marks = [(row, x(step)) for row, step in moments if step is not None and step <= last]
    x_ticks = [(x(step), f"{step:g}") for step in _ticks(0, last)]
    y_ticks = [(y(value), f"{value:g}") for value in _ticks(low, high)]
    return Panel(title, lines, marks, x_ticks, y_ticks)


def _ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers between both."""
    size = 10 ** math.floor(math.log10(high - low))
    steps = [size * factor for factor in (5, 2, 1, 0.5, 0.2)]
    step = next(step for step in steps if (high - low) / step >= 3)
    first = math.ceil(low / step)
    last = math.floor(high / step)
    return [round(i * step, 10) for i in range(first, last + 1)]
