"""The pictures of README.md and docs/: python benchmarks/pictures.py [--script interaed_kd]

Draws docs/pictures/<script>.png from the rows in results/<script>.jsonl: a line per row
with its difference to a baseline and the 95 % interval of benchmarks/table.py. The
intervals need the texts of the test sets, so build the demo worlds first:
python -m common.demo; python -m common.demo --world mls
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import table
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FOLDER = table.ROOT / "docs" / "pictures"


class Picture(NamedTuple):
    """What a picture shows: at most eight lines in all its panels."""

    baseline: str  # a row of benchmarks/rows.py
    scores: tuple[str, ...]  # a panel each: names of columns of the table
    lines: dict[str, str]  # row: what it is, in words
    limit: float = np.inf  # the axis ends here; what lies beyond gets an arrow


PICTURES = {
    "interaed_kd": Picture(
        baseline="ctc",
        scores=("test-clean WER",),
        lines={
            "aed_kd": "BERT teaches at the last layer\naed_kd",
            "interctc": "a CTC loss at a middle layer too, no teacher\ninterctc",
            "interaed": "decoders at both layers, no teacher\ninteraed",
            "interaed_kd": "decoders at both layers, taught by BERT: the paper\ninteraed_kd",
            "interaed_kd, uniform teacher": "the same with a teacher that knows nothing\n"
            "variant uniform_teacher",
            "aed_kd, w .66": "BERT at the last layer, CTC at the middle one too\n"
            "variant aed_kd_with_taps",
            "ctc + beam + LM": "ctc, decoded by a beam with a language model\nevaluate.py",
        },
    ),
    "multirep_kd": Picture(
        baseline="rnnt",
        scores=("test-clean homophones",),
        lines={
            "uniform-2, untrained teacher": "a BERT that never learnt anything\n"
            "variant untrained_teacher",
            "uniform-2, shuffled teacher": "BERT reads another sentence\nvariant shuffled_teacher",
            "first-2": "BERT's first two layers\n--teacher-layers first",
            "last-1": "BERT's last layer alone\n--teacher-layers last --n-layers 1",
            "uniform-2": "BERT's layers 4 and 8: the paper\nmultirep_kd",
            "last-4": "BERT's last four layers\n--teacher-layers last --n-layers 4",
            "uniform-2, two teachers": "a second, weaker BERT beside the first\n--teachers",
            "rnnt + beam + LM": "rnnt, decoded by a beam with a language model\nevaluate.py",
        },
    ),
    "streaming_aux_kd": Picture(
        baseline="teacher",
        scores=("test-clean WER, twins equal",),
        lines={
            "scratch": "no teacher\nscratch",
            "token_kd": "teacher's token probabilities\ntoken_kd",
            "layer_kd": "teacher's features, no branches\nlayer_kd",
            "aux_kd": "teacher's features, through branches: the paper\naux_kd",
            "token_kd, weight 3e-2": "token_kd, thirty times the weight",
            "aux_kd, weight 10": "aux_kd, ten times the weight",
            "aux_kd, weight 10, untrained teacher": "the same with a teacher that never learnt",
            "scratch, twice the updates": "no teacher, twice the updates\nscratch --epochs 8",
        },
        limit=30,
    ),
    "llm_prompt_asr": Picture(
        baseline="ctc",
        scores=("WER, mean of languages", "homophones"),
        lines={
            "all trained, 160 ms": "speech is the prompt of a language model: the paper\nllm",
            "ctc + beam + LM": "ctc, decoded by a beam with the same language model\nevaluate.py",
            "ctc, 8 epochs": "ctc, as many updates as both\nctc --ctc-epochs 8",
            "monolingual ctc, 32 epochs": "eight ctc of one language each, as many updates each",
        },
    ),
    "hubert_gpt_bridge": Picture(
        baseline="ctc",
        scores=("test-clean WER", "test-clean CER"),
        lines={
            "conv": "GPT behind convolutions, after CTC\ngpt",
            "conv, HuBERT as pretrained, 7 epochs": "GPT behind convolutions: the paper\n"
            "gpt --ctc-run none --epochs 7",
            "ctc, 7 epochs": "ctc, as many updates as both\nctc --ctc-epochs 7",
            "ctc + beam + LM": "ctc, decoded by a beam with GPT\nevaluate.py",
        },
    ),
}


def draw_line(
    axis: Axes, y: int, interval: table.Interval, by_seed: list[float], limit: float
) -> None:
    """The mean with its interval, and a small mark per seed. One seed: the mark is hollow."""
    several = len(by_seed) > 1
    low = interval.low
    high = min(interval.high, limit)
    axis.plot([low, high], [y, y], color="black", linewidth=1.5)
    if interval.high > limit:
        axis.plot(limit, y, ">", color="black", markersize=6, clip_on=False)
    if interval.difference <= limit:
        fill = "black" if several else "white"
        axis.plot(interval.difference, y, "o", color="black", markerfacecolor=fill, markersize=7)
    if several:
        shown = [value for value in by_seed if value <= limit]
        axis.plot(shown, [y - 0.25] * len(shown), "|", color="black", markersize=6)
    seeds = f"{len(by_seed)} seeds" if several else "1 seed"
    words = f"{interval.difference:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]  {seeds}"
    axis.annotate(words, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=8)


def drawn_lines(picture: Picture, found: dict[str, dict[int, dict]]) -> list[str]:
    """The rows that were run with a seed of the baseline."""
    return [row for row in picture.lines if set(found[picture.baseline]) & set(found[row])]


def draw_panel(
    axis: Axes, picture: Picture, name: str, found: dict[str, dict[int, dict]], script: str
) -> None:
    """All lines of one score."""
    rows = drawn_lines(picture, found)
    (score,) = [score for score in table.scores_of(script) if score.name == name]
    base = found[picture.baseline]
    rate = np.mean([score.of(entry) for entry in base.values()])
    for y, row in enumerate(rows):
        both = sorted(set(base) & set(found[row]))
        by_seed = [score.of(found[row][seed]) - score.of(base[seed]) for seed in both]
        interval = table.interval_between(base, found[row], score)
        draw_line(axis, y, interval, by_seed, picture.limit)
    axis.axvline(0, color="black", linestyle="--", linewidth=1)
    seeds = "1 seed" if len(base) == 1 else f"{len(base)} seeds"
    axis.set_title(f"{name}\nbaseline {picture.baseline}: {rate:.1f} % ({seeds})", fontsize=10)
    axis.set_xlabel("points more (right) or fewer (left) than the baseline", fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="x", color="0.85")
    axis.tick_params(labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)


def draw(script: str) -> Path:
    """Draws docs/pictures/<script>.png, and returns its path."""
    picture = PICTURES[script]
    found = {row: {} for row in table.ROWS[script]}
    for entry in table.read_results(script):
        if entry["row"] in found:
            found[entry["row"]][entry["seed"]] = entry
    panels = len(picture.scores)
    rows = drawn_lines(picture, found)
    figure = Figure(figsize=(4 + 2.6 * panels, 1.2 + 0.42 * len(rows)))
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, picture.scores, strict=True):
        draw_panel(axis, picture, name, found, script)
    axes[0].set_yticks(range(len(rows)), [picture.lines[row] for row in rows], fontsize=8)
    figure.subplots_adjust(wspace=0.9)
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{script}.png"
    figure.savefig(path, dpi=130, bbox_inches="tight")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", nargs="+", default=list(PICTURES), choices=PICTURES)
    for script in parser.parse_args().script:
        print(draw(script))
