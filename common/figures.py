"""Figures of a run, drawn from what the run wrote. matplotlib is imported here only,
and needs no screen.

figures.draw(folder, {"lattice.png": partial(...), ...})      # after the results
"""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.errors import UserError, note

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

Drawings = dict[str, Callable[[], object]]  # {file: a function that draws it}


def read_log(folder: Path) -> list[dict]:
    """log.jsonl of a run: an entry per update and per epoch. Raises UserError."""
    try:
        return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}/log.jsonl is missing or damaged ({error}): the run has to be repeated."
        ) from None


def draw(folder: str | Path, drawings: Drawings) -> None:
    """Draws loss.png of the run in `folder`, and then each of `drawings`: {file: a
    function that draws it}.

    A script calls this when its results are written, since a figure may fail in many
    ways: no clip can be read, no memory is left, matplotlib is broken. A figure that
    could not be drawn is named, the others follow, and the run ends as usual.
    """
    loss = {"loss.png": functools.partial(loss_curve, Path(folder))}
    for name, function in (loss | drawings).items():
        try:
            function()
        except Exception as error:  # whatever it is, it is not worth a run
            lines = str(error).strip().splitlines() or [type(error).__name__]
            note(f"{name} could not be drawn ({lines[0].rstrip('.')}); the results are complete.")


@functools.cache
def _set_up() -> None:
    """Sets matplotlib's fonts, and no formulas."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    # matplotlib's own font has no Chinese, Japanese or Korean: take fonts of the system for them.
    names = {font.name for font in fontManager.ttflist}
    fallbacks = sorted(
        name for name in names if re.search("CJK|Gothic|Hiragino|PingFang|Nanum", name)
    )
    matplotlib.rcParams["font.family"] = ["DejaVu Sans", *fallbacks]
    matplotlib.rcParams["text.parse_math"] = False  # a $ in a transcript or a folder's name is a $


def _figure(**options) -> Figure:
    """An empty figure; options: of matplotlib's Figure."""
    from matplotlib.figure import Figure

    _set_up()
    return Figure(**options)


def _save(figure: Figure, path: str | Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # it draws a box there
        figure.savefig(path, dpi=130, bbox_inches="tight")


def loss_curve(folder: Path) -> None:
    """FOLDER/loss.png: the loss per update (thin) with its running mean (thick), and
    the dev error on a second axis."""
    log = read_log(folder)
    steps, losses = zip(
        *((entry["step"], entry["loss"]) for entry in log if "loss" in entry), strict=True
    )
    dev = [(entry["step"], entry["dev"]) for entry in log if "dev" in entry]
    figure = _figure(figsize=(7, 3.5))
    axis = figure.subplots()
    axis.plot(steps, losses, color="C0", alpha=0.25, linewidth=0.7)
    span = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(span) / span, mode="valid")
    axis.plot(steps[span - 1 :], smooth, color="C0", label=f"training loss, mean of {span}")
    axis.set(xlabel="update", ylabel="loss per utterance", title=folder.name, ylim=(0, None))
    if dev:
        other = axis.twinx()
        other.plot(*zip(*dev, strict=True), "o-", color="C1", markersize=3)
        other.set_ylabel("dev error rate, %", color="C1")
        other.set_ylim(bottom=0)
    axis.legend(loc="upper right")
    _save(figure, folder / "loss.png")


def posteriors(
    path: str | Path,
    probabilities: np.ndarray,
    names: list[str],
    seconds_per_frame: float,
    title: str,
) -> None:
    """Draws probabilities (T, N) of N labels over time, a row per label."""
    figure = _figure(figsize=(8, 0.8 + 0.24 * len(names)))
    axis = figure.subplots()
    T, N = probabilities.shape
    image = axis.imshow(
        probabilities.T,
        aspect="auto",
        cmap="magma_r",
        vmin=0,
        vmax=1,
        extent=(0, T * seconds_per_frame, N - 0.5, -0.5),
    )
    axis.set(xlabel="seconds", yticks=range(N), yticklabels=names, title=title)
    axis.tick_params(axis="y", labelsize=8)
    figure.colorbar(image, ax=axis, label="probability", pad=0.01)
    _save(figure, path)


def log_curves(path: Path, key: str, y: str) -> None:
    """A smoothed line for every number that the log beside `path` has under `key`:
    {"kd": {"layer 4": 2.0}} or 2.0."""
    series: dict[str, list[tuple[int, float]]] = {}
    for entry in read_log(path.parent):
        found = entry.get(key, {})
        for name, value in (
            found.items() if isinstance(found, dict) else [(key.replace("_", " "), found)]
        ):
            series.setdefault(name, []).append((entry["step"], value))
    figure = _figure(figsize=(7, 3.5))
    axis = figure.subplots()
    for name, points in series.items():
        xs, ys = np.array(points).T
        span = max(1, len(ys) // 50)
        axis.plot(xs[span - 1 :], np.convolve(ys, np.ones(span) / span, mode="valid"), label=name)
    axis.set(xlabel="update", ylabel=y, title=path.parent.name)
    axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
    axis.legend()
    _save(figure, path)


def matrices(path: Path, panels: dict[str, np.ndarray], x: str, y: str) -> None:
    """Draws matrices (rows, columns) beside each other, all in one scale."""
    figure = _figure(figsize=(3.6 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(
        1, len(panels), squeeze=False, sharey=len({len(m) for m in panels.values()}) == 1
    )[0]
    low = min(np.min(m) for m in panels.values())
    high = max(np.max(m) for m in panels.values())
    for axis, (name, matrix) in zip(axes, panels.items(), strict=True):
        axis.imshow(
            matrix, aspect="auto", cmap="magma_r", vmin=low, vmax=high, interpolation="nearest"
        )
        axis.set(title=name, xlabel=x)
    axes[0].set_ylabel(y)
    _save(figure, path)


def bars(
    path: str | Path, names: list[str], series: dict[str, list[float]], label: str, title: str
) -> None:
    """One group of bars per name, from top to bottom, one colour per series: {what it
    is: a value per name}."""
    figure = _figure(figsize=(7, 1 + max(0.3, 0.12 * len(series)) * len(names)))
    axis = figure.subplots()
    height = 0.8 / len(series)
    for i, (what, values) in enumerate(series.items()):
        axis.barh(
            np.arange(len(names)) + (i - (len(series) - 1) / 2) * height, values, height, label=what
        )
    axis.set(
        yticks=range(len(names)),
        yticklabels=names,
        ylim=(len(names) - 0.4, -0.6),
        xlabel=label,
        title=title,
    )
    if len(series) > 1:
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)  # beside the bars
    _save(figure, path)


def expectations(
    path: Path, title: str, pieces: list[str], teacher: Tensor, decoder: Tensor, some: int = 12
) -> None:
    """What BERT and the decoder expect at one place: probabilities (V,) of both, of the
    `some` likeliest pieces of each.

    pieces: of labels 1 to V - 1; label 0 is <eos>.
    """
    likely = {*teacher.topk(some).indices.tolist(), *decoder.topk(some).indices.tolist()}
    shown = sorted(likely, key=lambda label: -teacher[label])
    names = [pieces[label - 1] if label else "<eos>" for label in shown]
    series = {
        "BERT's soft label": teacher[shown].tolist(),
        "decoder at the last layer": decoder[shown].tolist(),
    }
    bars(path, names, series, "probability", title)
