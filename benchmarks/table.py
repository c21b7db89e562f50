"""A table of RESULTS.md: python benchmarks/table.py [--script multirep_kd] [--seeds 1,2,3] [--rows ctc aed] [--jobs 2]

Trains and scores every (row, seed) that results/<script>.jsonl lacks, appends its result there as soon as it is
finished, and writes the table with its intervals between the two marks in RESULTS.md, and results/<script>.png.
Interrupted, it goes on where it was. --jobs 2 runs two at a time with one thread each: on two cores that does more per
hour than one run with two threads, but the seconds are then not those of a run alone.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from common import figures, metrics  # noqa: E402
from common.corpora import load_homophones  # noqa: E402

BEAM = "--decode beam --lm demo/lm"
KD = "--method multirep_kd"
LAST = f"{KD} --teacher-layers last --n-layers 1"  # also uniform-1
ROWS = {  # script -> row -> options; "of ROW:" decodes the finished runs of ROW anew
    "interaed_kd": {
        "ctc": "--method ctc",
        "interaed_kd": "--method interaed_kd",
        "interctc": "--method interctc",
        "aed": "--method aed",
        "aed_kd": "--method aed_kd",
        "interaed": "--method interaed",
        "ctc + beam + LM": f"of ctc: {BEAM}",
        "interaed_kd + beam + LM": f"of interaed_kd: {BEAM}",
        "aed_kd, w .66": "--method aed_kd --w 0.66",
        "interaed_kd, a 1": "--method interaed_kd --a 1",
        "interaed_kd, a .1": "--method interaed_kd --a 0.1",
        "interaed_kd, uniform teacher": "--method interaed_kd --soft-labels uniform",
        "interaed_kd, teacher B": "--method interaed_kd --teacher demo/bert-b",
        "interaed_kd, KD at the last layer": "--method interaed_kd --kd-where final",
        "interaed_kd, KD at the taps": "--method interaed_kd --kd-where inter",
        "ctc, half the audio": "--method ctc --hours 0.9",
        "interaed_kd, half the audio": "--method interaed_kd --hours 0.9",
        "ctc, four times the audio": "--method ctc --hours 7.2",
        "interaed_kd, four times the audio": "--method interaed_kd --hours 7.2",
    },
    "multirep_kd": {
        "rnnt": "--method rnnt",
        "uniform-2": KD,
        "last-1": LAST,
        "uniform-2, context": f"{KD} --context 60",
        "uniform-2, two teachers": f"{KD} --teachers demo,demo/bert-b",
        "uniform-2, shuffled teacher": f"{KD} --control shuffle",
        "uniform-2, untrained teacher": f"{KD} --control random",
        "rnnt + beam + LM": f"of rnnt: {BEAM}",
        "uniform-2 + beam + LM": f"of uniform-2: {BEAM}",
        **{
            f"{layers}-{k}": f"{KD} --teacher-layers {layers} --n-layers {k}"
            for layers in ("last", "first", "uniform", "random")
            for k in (2, 4)
            if (layers, k) != ("uniform", 2)
        },
        "last-1, two teachers": f"{LAST} --teachers demo,demo/bert-b",
        "last-1, teacher B": f"{LAST} --teachers demo/bert-b",
        "uniform-2, teacher B": f"{KD} --teachers demo/bert-b",
        "last-1, context": f"{LAST} --context 60",
        **{
            f"uniform-2, context, mask {mask}": f"{KD} --context 60 --context-mask {mask}" for mask in ("0", ".1", ".2")
        },
        "uniform-2, past context": f"{KD} --context 60 --context-sides past",
        "uniform-2, context 30": f"{KD} --context 30",
        "uniform-2, context 90": f"{KD} --context 90",  # all: no session has more, so 120 is the same run
        "uniform-2, L2": f"{KD} --distance l2",
        "uniform-2, cosine": f"{KD} --distance cosine",
        "uniform-2, target norm": f"{KD} --target-norm",
        "soft labels": "--method soft_labels",
        **{
            f"{row}, {amount} the audio": f"{options} --hours {hours}"
            for amount, hours in (("half", 0.9), ("twice", 3.6))
            for row, options in (("rnnt", "--method rnnt"), ("uniform-2", KD))
        },
        # as many updates as with all of the audio
        "rnnt, half the audio, 10 epochs": "--method rnnt --hours 0.9 --epochs 10",
        "uniform-2, half the audio, 10 epochs": f"{KD} --hours 0.9 --epochs 10",
    },
}
PAIRS = {  # what is compared with what, beside every row with the first
    "interaed_kd": [
        ("interaed_kd", "interctc"),  # what decoder and teacher add to the losses at the taps
        ("interaed_kd", "interaed"),  # what the teacher adds
        ("interaed_kd", "aed_kd"),  # the paper's claim: against conventional distillation
        ("interaed_kd", "aed_kd, w .66"),  # the same with the same CTC losses
        ("interaed_kd", "interaed_kd, uniform teacher"),
        ("interaed_kd", "interaed_kd, teacher B"),
        ("interaed_kd", "ctc + beam + LM"),  # the paper's claim: parallel decoding against the beam
        ("interaed_kd, half the audio", "ctc, half the audio"),
        ("interaed_kd, four times the audio", "ctc, four times the audio"),
    ],
    "multirep_kd": [
        ("uniform-2", "last-1"),  # the paper's claims: several representations against one, context, two teachers
        *((f"uniform-{k}", f"{layers}-{k}") for k in (2, 4) for layers in ("last", "first", "random")),
        *((f"{layers}-4", f"{layers}-2") for layers in ("last", "first", "uniform", "random")),
        ("uniform-2, context", "uniform-2"),
        ("uniform-2, past context", "uniform-2, context"),
        ("last-1, context", "last-1"),
        ("uniform-2, two teachers", "uniform-2"),
        ("last-1, two teachers", "last-1"),
        ("uniform-2", "uniform-2, shuffled teacher"),  # what is left is language
        ("uniform-2", "uniform-2, untrained teacher"),
        *((f"uniform-2, {distance}", "uniform-2") for distance in ("L2", "cosine", "target norm")),
        ("uniform-2", "soft labels"),  # other ways to bring in what was learnt from text
        ("uniform-2", "rnnt + beam + LM"),
        ("uniform-2 + beam + LM", "rnnt + beam + LM"),
        ("uniform-2, half the audio", "rnnt, half the audio"),
        ("uniform-2, half the audio, 10 epochs", "rnnt, half the audio, 10 epochs"),
        ("uniform-2, twice the audio", "rnnt, twice the audio"),
    ],
}
SPEED = {"train_seconds": "training, s", "audio_seconds_per_second": "audio-s/s", "teacher_seconds": "teacher, s",
         "rtf": "RTF", "greedy_rtf": "RTF of greedy decoding"}  # fmt: skip


def run_one(script: str, row: str, seed: int, threads: int) -> dict:
    """Runs a row with one seed, or goes on with it, and returns what the results file keeps. Raises RuntimeError."""
    runs, what = ROOT / "runs" / "table" / script, ROWS[script][row]
    folder = runs / f"{re.sub('[^a-z0-9_.]+', '-', row)}-s{seed}"
    options = shlex.split(what)
    if options[0] == "of":
        of, options = what.removeprefix("of ").split(":")
        of = runs / f"{of}-s{seed}"
        command = ["--checkpoint", str(of), "--out", str(folder), *shlex.split(options)]
    else:
        resume = ["--resume"] if (folder / "config.json").exists() else []
        command = [*options, "--seed", str(seed), "--out", str(folder), *resume]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, f"{script}.py", *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"{row}, seed {seed}: {said[-1]}")
    result = json.loads((folder / "result.json").read_text())
    kept = {"row": row, "options": what, "threads": threads, "date": time.strftime("%Y-%m-%d"), "commit": commit()}
    log = folder / "log.jsonl"
    if log.exists():
        dev = [entry for entry in map(json.loads, log.read_text().splitlines()) if "dev" in entry]
        kept["dev"] = [[round(entry[key], 2) for key in ("dev", "dev_homophone_error")] for entry in dev]
    return kept | result | {"seed": seed, "counts": {s: count(folder / f"hyp_{s}.txt") for s in result["wer"]}}


def commit() -> str:
    return subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()


def count(path: Path) -> dict[str, str]:
    """Per utterance in the file's order, a digit each: word errors, homophones written as their twin, and heard."""
    twins = load_homophones(ROOT / "data" / "demo" / "LibriSpeech")
    pairs = metrics.read_side_by_side(path.read_text()).values()
    errors = [metrics.word_errors([r], [h]) for r, h in pairs]
    heard = [metrics.homophone_errors([r], [h], twins) for r, h in pairs]
    columns = {
        "errors": [e.substitutions + e.deletions + e.insertions for e in errors],
        "twins": [h.wrong for h in heard],
        "heard": [h.count for h in heard],
    }
    return {name: ",".join(map(str, column)) for name, column in columns.items()}


def sessions_and_words(split: str) -> tuple[list[str], np.ndarray]:
    """Of every utterance of a split, in the order of the hypothesis files."""
    lines = []
    for path in sorted((ROOT / "data" / "demo" / "LibriSpeech" / split).glob("*/*/*.trans.txt")):
        lines += path.read_text().splitlines()
    return [line.split()[0].rsplit("-", 1)[0] for line in lines], np.array([len(line.split()) - 1 for line in lines])


SCORES = [  # column, and where it stands in a result: rate, errors per utterance, out of how many (None: words)
    (f"{split} {name}", split, rate, errors, out_of)
    for split in ("test-clean", "test-other")
    for name, rate, errors, out_of in (
        ("WER", "wer", "errors", None),
        ("homophones", "homophone_error", "twins", "heard"),
    )
]


def differences(base: dict[int, dict], found: dict[int, dict]) -> list[tuple[str, float]]:
    """Per score: `found` minus `base` over the seeds that both have with its 95 % interval, and half of its width.

    Bold where it excludes zero and all of at least two seeds agree.
    """
    cells, paired = [], sorted(set(base) & set(found))
    for _, split, rate, errors, out_of in SCORES:
        sessions, words = sessions_and_words(split)
        tables = [
            (
                np.array([numbers(side[seed], split, errors) for seed in paired]),
                np.array([numbers(side[seed], split, out_of) if out_of else words for seed in paired]),
            )
            for side in (base, found)
        ]
        interval = metrics.bootstrap_difference(*tables, sessions)
        agree = len({np.sign(found[seed][rate][split] - base[seed][rate][split]) for seed in paired}) == 1
        shown = f"{interval.difference:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"
        clear = len(paired) > 1 and agree and interval.low * interval.high > 0
        cells.append((f"**{shown}**" if clear else shown, (interval.high - interval.low) / 2))
    return cells


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def render(script: str, entries: list[dict]) -> str:
    """In Markdown: every row's means over seeds; the differences between some rows; what each was run with."""
    found = {row: {e["seed"]: e for e in entries if e["row"] == row} for row in ROWS[script]}
    means, speeds = [], []
    speed = {key: name for key, name in SPEED.items() if any(key in e for e in entries)}
    for row, results in found.items():
        if not results:
            means.append([row, "not run", *[""] * len(SCORES)])
            continue
        cells = [row, str(len(results))]
        for _, split, rate, *_ in SCORES:
            rates = [e[rate][split] for e in results.values()]
            cells.append(f"{np.mean(rates):.1f}" + (f" ± {np.std(rates, ddof=1):.1f}" if len(rates) > 1 else ""))
        means.append(cells)
        medians = [[e[key] for e in results.values() if key in e] for key in speed]
        cells = [f"{np.median(x):.4g}" if x else "" for x in medians]
        commits = ", ".join(sorted({e["commit"] for e in results.values()}))
        speeds.append([row, f"`{ROWS[script][row]}`", *cells, commits])
    baseline = next(iter(found))
    compared = [(row, baseline) for row in found if row != baseline and "audio" not in row] + PAIRS[script]
    pairs = [(a, b, differences(found[b], found[a])) for a, b in compared if set(found[a]) & set(found[b])]
    halves = [np.median([cells[i][1] for *_, cells in pairs]) for i in range(len(SCORES)) if pairs]
    gaps = ["half an interval, median", "", *(f"{half:.1f}" for half in halves)]
    names = [name for name, *_ in SCORES]
    return "\n\n".join([
        markdown(["row", "seeds", *names], means),
        markdown(["difference of", "to", *names], [[a, b, *(shown for shown, _ in c)] for a, b, c in pairs] + [gaps]),
        markdown(["row", f"options of `{script}.py`", *speed.values(), "commits"], speeds),
    ])  # fmt: skip


def numbers(entry: dict, split: str, column: str) -> np.ndarray:
    return np.array(entry["counts"][split][column].split(","), dtype=int)


def results_file(script: str) -> Path:
    return ROOT / "results" / f"{script}.jsonl"


def read_results(script: str) -> list[dict]:
    path = results_file(script)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_table(script: str) -> None:
    entries = read_results(script)
    path = ROOT / "RESULTS.md"
    before, _, rest = path.read_text().partition(f"<!-- table: {script} -->")
    _, _, after = rest.partition("<!-- end of table -->")
    path.write_text(f"{before}<!-- table: {script} -->\n{render(script, entries)}\n<!-- end of table -->{after}")
    rows = [row for row in ROWS[script] if any(e["row"] == row for e in entries)]
    bars = {
        split: [np.mean([e["homophone_error"][split] for e in entries if e["row"] == row]) for row in rows]
        for split in ("test-clean", "test-other")
    }
    figures.bars(ROOT / "results" / f"{script}.png", rows, bars, "homophone errors, %", f"{script}, mean over seeds")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", default="interaed_kd", choices=ROWS)
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="names, quoted (absent: all)")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    script, all_rows = arguments.script, ROWS[arguments.script]
    rows = arguments.rows or list(all_rows)
    if unknown := set(rows) - set(all_rows):
        parser.error(f"no row {', '.join(unknown)}: there are {'; '.join(all_rows)}")
    there = {(entry["row"], entry["seed"]) for entry in read_results(script)}
    missing = [(row, int(s)) for s in arguments.seeds.split(",") for row in rows if (row, int(s)) not in there]
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    results_file(script).parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = {pool.submit(run_one, script, row, seed, threads): (row, seed) for row, seed in missing}
        for future in as_completed(runs):
            if error := future.exception():  # the others go on
                print(*runs[future], f"failed: {error}", file=sys.stderr, flush=True)
                continue
            result = future.result()
            with open(results_file(script), "a") as file:
                file.write(json.dumps(result) + "\n")
            print(*runs[future], result["wer"], result["homophone_error"], flush=True)
    write_table(script)
