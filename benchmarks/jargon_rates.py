"""Which learning rate suits which way of adapting: python benchmarks/jargon_rates.py [--jobs 2]

Every way of WAYS is trained on demo-jargon with every rate of RATES, seed 1, from the finished run START, or CTC from
its own. Runs that runs/rates/ holds are not repeated. Writes

    results/hubert_gpt_bridge-rates.md           a line per trial
    docs/pictures/hubert_gpt_bridge_rates.png    a point per trial: word errors in the domain, and at home

The dev set of the domain chooses the rate of a way: its point is filled. Dev may also choose the run as it was before
(epoch 0): that is the cross. The rates of these ways in benchmarks/rows.py come from here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import table
from matplotlib.figure import Figure

from common.figures import read_log

RUNS = table.ROOT / "runs" / "rates"
START = "runs/table/hubert_gpt_bridge/straight-s1"
RATES = ("3e-4", "1e-3", "3e-3", "1e-2")
ADAPT = f"hubert_gpt_bridge.py --method gpt --data demo-jargon --init {START}"
ALONE = f"{ADAPT} --lr-hubert 0 --lr-bridge 0 --lr-llm RATE"
CTC = "runs/table/hubert_gpt_bridge/ctc-s1"
WAYS = {  # way: the options, the mark in the picture; without a mark it is not drawn
    "LoRA attention r 8": (f"{ALONE} --lora-rank 8", "s"),
    "LoRA all r 8": (f"{ALONE} --lora-maps all --lora-rank 8", "v"),
    "LoRA all r 32": (f"{ALONE} --lora-maps all --lora-rank 32", "^"),
    "GPT whole": (ALONE, "o"),
    "everything": (f"{ADAPT} --lr-hubert RATE --lr-bridge RATE --lr-llm RATE", "D"),
    "CTC": (
        f"hubert_gpt_bridge.py --method ctc --data demo-jargon --init {CTC} --ctc-epochs 3 --ctc-lr RATE",
        "",
    ),
}
MORE = [("LoRA attention r 8", "3e-2")]  # its last epoch was best at the highest rate


class Trial(NamedTuple):
    """A way with a rate: % of words wrong."""

    way: str
    rate: str
    dev: list[float]  # epoch 0 is the run as it was
    domain: float
    home: float
    parameters: int
    seconds: float


def folder_of(way: str, rate: str) -> Path:
    return RUNS / f"{way.lower().replace(' ', '-')}-{rate}"


def run(trial: tuple[str, str]) -> None:
    """Trains and scores a way with a rate, unless that was done. Raises CalledProcessError."""
    way, rate = trial
    folder = folder_of(way, rate)
    if (folder / "result.json").exists():
        return
    command = WAYS[way][0].replace("RATE", rate).split() + ["--seed", "1", "--out", str(folder)]
    command += ["--resume"] if (folder / "config.json").exists() else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *command],
        cwd=table.ROOT,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def read(way: str, rate: str) -> Trial:
    folder = folder_of(way, rate)
    result = json.loads((folder / "result.json").read_text())
    dev = [entry["dev"] for entry in read_log(folder) if "dev" in entry]
    errors = result["wer"]
    numbers = (errors["test"], errors["test-clean"])
    return Trial(way, rate, dev, *numbers, result["trained_params"], result["train_seconds"])


def chosen(trials: list[Trial]) -> Trial:
    """The trial with the fewest errors on dev after training."""
    return min(trials, key=lambda trial: min(trial.dev[1:]))


def lines_of(trials: list[Trial]) -> list[list[str]]:
    """A line of the table per trial."""
    found = []
    for trial in trials:
        best = chosen([other for other in trials if other.way == trial.way])
        dev = ", ".join(f"{value:.1f}" for value in trial.dev)
        name = f"**{trial.rate}**" if trial is best else trial.rate
        numbers = [f"{trial.domain:.1f}", f"{trial.home:.1f}"]
        costs = [f"{trial.parameters:,}", f"{trial.seconds:.0f}"]
        found.append([trial.way, name, dev, *numbers, *costs])
    return found


def draw(trials: list[Trial]) -> None:
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axis = figure.subplots()
    drawn = {way: mark for way, (_, mark) in WAYS.items() if mark}
    for way, mark in drawn.items():
        own = [trial for trial in trials if trial.way == way and is_adapted(trial)]
        if not own:  # dev chose the start for every rate
            continue
        best = chosen([trial for trial in trials if trial.way == way])
        axis.plot(
            [t.domain for t in own], [t.home for t in own], mark, color="black", fillstyle="none"
        )
        axis.plot(best.domain, best.home, mark, color="black", label=way)
    start = next(trial for trial in trials if trial.way in drawn and not is_adapted(trial))
    axis.plot(start.domain, start.home, "x", color="black", markersize=10, label="not adapted")
    axis.set_xlabel("WER in the new domain, %")
    axis.set_ylabel("WER at home, %")
    axis.legend()
    figure.savefig(table.ROOT / "docs" / "pictures" / "hubert_gpt_bridge_rates.png", dpi=150)


def is_adapted(trial: Trial) -> bool:
    """False where dev chose the run as it was."""
    return min(trial.dev[1:]) < trial.dev[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1)
    planned = [(way, rate) for way in WAYS for rate in RATES] + MORE
    planned.sort(key=lambda trial: list(WAYS).index(trial[0]))
    with ThreadPoolExecutor(parser.parse_args().jobs) as pool:
        list(pool.map(run, planned))
    trials = [read(*trial) for trial in planned]
    head = ["way", "rate", "dev WER by epoch", "demo-jargon", "test-clean", "trained", "seconds"]
    text = f"# Rates of adapting\n\n{__doc__}\n{table.markdown(head, lines_of(trials))}\n"
    (table.ROOT / "results" / "hubert_gpt_bridge-rates.md").write_text(text, encoding="utf-8")
    draw(trials)


if __name__ == "__main__":
    main()
