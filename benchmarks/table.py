"""The tables in results/: python benchmarks/table.py [--script multirep_kd] [--seeds 1 2 3] [--rows ctc aed] [--jobs 2]

Trains and scores every (row, seed) of benchmarks/rows.py that results/<script>.jsonl lacks, appends its result there as
soon as it is finished, and writes the tables with their intervals between the two marks in results/<script>.md, and
results/<script>.png. Interrupted, it goes on where it was. --rows takes patterns too: "*20 epochs". --jobs 2 runs two
at a time with one thread each: on two cores that does more per hour than one run with two threads, but the seconds are
then not those of a run alone.
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
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rows import PAIRS, ROWS, SEEDS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from common import figures, metrics  # noqa: E402
from common.intervals import Interval, bootstrap_difference  # noqa: E402
from common.running.corpora import load_homophones  # noqa: E402
from common.running.hypotheses import read_hypotheses  # noqa: E402
from common.text import read_lines  # noqa: E402

SPEED = {"train_seconds": "training, s", "audio_seconds_per_second": "audio-s/s", "teacher_seconds": "teacher, s",
         "rtf": "RTF", "greedy_rtf": "RTF of greedy decoding"}  # fmt: skip


def run_one(script: str, row: str, seed: int, threads: int) -> dict:
    """Runs a row with one seed, or goes on with it, and returns what the results file keeps. Raises RuntimeError."""
    runs, what = ROOT / "runs" / "table" / script, ROWS[script][row]
    folder = runs / f"{re.sub('[^a-z0-9_.]+', '-', row.lower())}-s{seed}"
    command = command_of(script, what.replace("{seed}", str(seed)), runs, seed)
    if "evaluate.py" not in command:
        command += [
            "--seed",
            str(seed),
            *(["--resume"] if (folder / "config.json").exists() else []),
        ]
    command += ["--out", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        error = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(error[-1])
    result = json.loads((folder / "result.json").read_text())
    kept = {
        "row": row,
        "options": what,
        "threads": threads,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
    }
    log = folder / "log.jsonl"
    if log.exists():
        dev = [entry for entry in map(json.loads, log.read_text().splitlines()) if "dev" in entry]
        keys = ("dev", "dev_homophone_error", "listening_gap")
        kept["dev"] = [[round(entry[key], 2) for key in keys if key in entry] for entry in dev]
    twins = twins_of(script)
    texts = {
        split: next(folder.rglob(f"hyp_{split}.tsv")) for split in result["wer"]
    }  # of each language, below
    return (
        kept
        | result
        | {"seed": seed, "counts": {split: count(path, twins) for split, path in texts.items()}}
    )


def command_of(script: str, what: str, runs: Path, seed: int) -> list[str]:
    """What Python is started with for a row of benchmarks/rows.py, but for the options that all rows get."""
    before, colon, after = what.partition(":")
    if colon and before.startswith("of "):
        return [
            "evaluate.py",
            str(runs / f"{before.removeprefix('of ')}-s{seed}"),
            *shlex.split(after),
        ]
    if colon and before.startswith("variant "):
        return ["-m", f"variants.{script}.{before.removeprefix('variant ')}", *shlex.split(after)]
    return [f"{script}.py", *shlex.split(what)]


def commit() -> str:
    return subprocess.check_output(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True
    ).strip()


def twins_of(script: str) -> dict[str, str]:
    """The homophones of the demo world that the script is trained on."""
    world = "demo-mls" if script == "llm_prompt_asr" else "demo/LibriSpeech"
    return load_homophones(ROOT / "data" / world)


def count(path: Path, twins: dict[str, str]) -> dict[str, str]:
    """A number per utterance of hyp_<split>.tsv: word errors; those that can be heard; homophones written as their
    twin, out of how many; character errors, out of how many."""
    pairs = [([reference], [hypothesis]) for _, reference, hypothesis in read_hypotheses(path)]
    homophones = [metrics.homophone_errors(*pair, twins) for pair in pairs]
    characters = [metrics.character_errors(*pair) for pair in pairs]
    columns = {
        "errors": [metrics.word_errors(*pair).errors for pair in pairs],
        "audible": [metrics.word_errors(*pair, twins).errors for pair in pairs],
        "twins": [h.wrong for h in homophones],
        "heard": [h.count for h in homophones],
        "character_errors": [c.errors for c in characters],
        "characters": [c.words for c in characters],
    }
    return {name: ",".join(map(str, column)) for name, column in columns.items()}


# Of hubert_gpt_bridge: both worlds call their test set "test", so a result is told apart by its options.
DOMAINS = ("demo-talk", "demo-jargon")


def named_by_domain(entry: dict) -> dict:
    """The result with the name of the domain for "test" in all that it has by test set."""
    domain = "demo-jargon" if "demo-jargon" in entry.get("options", "") else "demo-talk"

    def renamed(value):
        if isinstance(value, dict) and "test" in value:
            return {domain if name == "test" else name: x for name, x in value.items()}
        return value

    return {key: renamed(value) for key, value in entry.items()}


@cache
def sessions_and_words(split: str) -> tuple[list[str], np.ndarray]:
    """Of every utterance of a split, in the order of the hypothesis files."""
    data = ROOT / "data"
    if split in DOMAINS:
        manifest = read_lines(data / split / "test.jsonl")
        entries = [json.loads(line) for line in manifest]
        return [e["session"] for e in entries], np.array([len(e["text"].split()) for e in entries])
    if (
        book := data / "demo-mls" / split.replace("test-", "mls_") / "test" / "transcripts.txt"
    ).exists():
        lines = [line.replace("\t", " ") for line in read_lines(book)]
    else:
        files = sorted((data / "demo" / "LibriSpeech" / split).glob("*/*/*.trans.txt"))
        lines = [line for path in files for line in read_lines(path)]
    sessions = [re.split("[-_][^-_]*$", line.split()[0])[0] for line in lines]
    return sessions, np.array([len(line.split()) - 1 for line in lines])


class Score(NamedTuple):
    """A column: where its rates stand in a result, for which splits; errors per utterance, out of how many."""

    name: str
    rate: str
    splits: list[str]
    errors: str
    out_of: str = ""  # "": words

    def of(self, entry: dict) -> float:
        """Not a number, where the row was not scored on these."""
        return float(np.mean([entry[self.rate].get(split, np.nan) for split in self.splits]))


LANGUAGES = ["english", "german", "dutch", "french", "spanish", "italian", "portuguese", "polish"]


def right(entry: dict, split: str) -> int:
    """Homophones that were written right."""
    return int((numbers(entry, split, "heard") - numbers(entry, split, "twins")).sum())


PROMPTED = {
    "trained parameters": lambda e: e["trained_params"],
    "listening gap": lambda e: e["listening_gap"],
}
STOPPED = {"answers that did not stop": lambda e: e["unstopped"]}
MORE = {  # script -> column of a further table -> what it takes from a result
    "llm_prompt_asr": PROMPTED
    | {
        "rho": lambda e: e["alignment"]["rho"],
        "rho beside other audio": lambda e: e["alignment"]["rho_swapped"],
        "steps that do not fall, %": lambda e: 100 * e["alignment"]["non_decreasing"],
        "by chance, %": lambda e: 100 * e["alignment"]["chance"],
        "text perplexity before": lambda e: e["text_perplexity"][0],
        "after": lambda e: e["text_perplexity"][1],
    }
    | STOPPED,
    "hubert_gpt_bridge": PROMPTED
    | {
        "vectors/s": lambda e: e["embeddings_per_second"],
        "homophones right, test-clean": lambda e: right(e, "test-clean"),
        "test-other": lambda e: right(e, "test-other"),
    }
    | STOPPED,
}
DRAWN = {  # what a script's figure shows, if not homophones
    "streaming_aux_kd": ("audible", "WER where twins count as equal, %"),
    "llm_prompt_asr": ("errors", "word error rate, %"),
    "hubert_gpt_bridge": ("errors", "word error rate, %"),
}


def scores_of(script: str) -> list[Score]:
    if script == "llm_prompt_asr":
        splits = [f"test-{language}" for language in LANGUAGES]
        ambiguous = [split for split in splits if split != "test-italian"]  # it has no homophones
        return [
            Score("WER, mean of languages", "wer", splits, "errors"),
            Score("WER, twins equal", "wer_twins_equal", splits, "audible"),
            Score("homophones", "homophone_error", ambiguous, "twins", "heard"),
        ]
    found = []
    for split in ("test-clean", "test-other"):
        found.append(Score(f"{split} WER", "wer", [split], "errors"))
        if script == "hubert_gpt_bridge":
            found.append(Score(f"{split} CER", "cer", [split], "character_errors", "characters"))
        if script == "streaming_aux_kd":
            found.append(Score(f"{split} WER, twins equal", "wer_twins_equal", [split], "audible"))
        found.append(Score(f"{split} homophones", "homophone_error", [split], "twins", "heard"))
    if script == "hubert_gpt_bridge":
        found += [Score(f"{domain} WER", "wer", [domain], "errors") for domain in DOMAINS]
    return found


def interval_between(
    base: dict[int, dict], found: dict[int, dict], score: Score
) -> Interval | None:
    """`found` minus `base`, over the seeds that both have. None: a row was not scored on these."""
    paired = sorted(set(base) & set(found))
    if any(np.isnan(score.of(side[seed])) for seed in paired for side in (base, found)):
        return None
    read = {split: sessions_and_words(split) for split in score.splits}
    sessions = [f"{split} {session}" for split in score.splits for session in read[split][0]]
    languages = [split for split in score.splits for _ in read[split][0]]
    words = np.concatenate([read[split][1] for split in score.splits])

    def column(entry: dict, name: str) -> np.ndarray:
        return np.concatenate([numbers(entry, split, name) for split in score.splits])

    tables = []
    for side in (base, found):
        errors = [column(side[seed], score.errors) for seed in paired]
        counts = [column(side[seed], score.out_of) if score.out_of else words for seed in paired]
        tables.append((np.array(errors), np.array(counts)))
    return bootstrap_difference(*tables, sessions, languages)


def differences(
    base: dict[int, dict], found: dict[int, dict], scores: list[Score]
) -> list[tuple[str, float]]:
    """Per score: `found` minus `base` over the seeds that both have with its 95 % interval, and half of its width.

    Bold where it excludes zero and all of at least two seeds agree.
    """
    cells = []
    paired = sorted(set(base) & set(found))
    for score in scores:
        interval = interval_between(base, found, score)
        if interval is None:
            cells.append(("", np.nan))
            continue
        agree = len({np.sign(score.of(found[seed]) - score.of(base[seed])) for seed in paired}) == 1
        shown = f"{interval.difference:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"
        clear = len(paired) > 1 and agree and interval.low * interval.high > 0
        cells.append((f"**{shown}**" if clear else shown, (interval.high - interval.low) / 2))
    return cells


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(
        "| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]
    )


def render(script: str, entries: list[dict]) -> str:
    """In Markdown: every row's means over seeds; the differences between some rows; what each was run with."""
    found = {row: {e["seed"]: e for e in entries if e["row"] == row} for row in ROWS[script]}
    means, speeds, scores = [], [], scores_of(script)
    speed = {key: name for key, name in SPEED.items() if any(key in e for e in entries)}
    for row, results in found.items():
        if not results:
            means.append([row, "not run", *[""] * len(scores)])
            continue
        cells = [row, str(len(results))]
        for score in scores:
            rates = [score.of(e) for e in results.values()]
            if np.isnan(rates).any():
                cells.append("")
                continue
            cells.append(
                f"{np.mean(rates):.1f}"
                + (f" ± {np.std(rates, ddof=1):.1f}" if len(rates) > 1 else "")
            )
        means.append(cells)
        medians = [[e[key] for e in results.values() if key in e] for key in speed]
        cells = [f"{np.median(x):.4g}" if x else "" for x in medians]
        commits = ", ".join(sorted({e["commit"] for e in results.values()}))
        speeds.append([row, f"`{ROWS[script][row]}`", *cells, commits])
    baseline = next(iter(found))
    compared = [(row, baseline) for row in found if row != baseline and "audio" not in row] + PAIRS[
        script
    ]
    pairs = [
        (a, b, differences(found[b], found[a], scores))
        for a, b in compared
        if set(found[a]) & set(found[b])
    ]
    widths = [
        [cells[i][1] for *_, cells in pairs if not np.isnan(cells[i][1])]
        for i in range(len(scores))
    ]
    gaps = [
        "half an interval, median",
        "",
        *(f"{np.median(halves):.1f}" if halves else "" for halves in widths),
    ]
    names = [score.name for score in scores]
    return "\n\n".join([
        markdown(["row", "seeds", *names], means),
        *further(script, found),
        markdown(["difference of", "to", *names], [[a, b, *(shown for shown, _ in c)] for a, b, c in pairs] + [gaps]),
        markdown(["row", f"options of `{script}.py`", *speed.values(), "commits"], speeds),
    ])  # fmt: skip


def further(script: str, found: dict[str, dict[int, dict]]) -> list[str]:
    """The table of MORE, means over the seeds; an empty cell where a row has no such thing."""
    table = []
    for row, results in found.items():
        cells = [row]
        for value in MORE.get(script, {}).values():
            try:
                mean = np.mean([value(e) for e in results.values()]) if results else None
                cells.append(
                    "" if mean is None else f"{mean:,.0f}" if mean >= 100 else f"{mean:.3g}"
                )
            except KeyError:
                cells.append("")
        table += [cells] if any(cells[1:]) else []
    return [markdown(["row", *MORE[script]], table)] if table else []


def numbers(entry: dict, split: str, column: str) -> np.ndarray:
    return np.array(entry["counts"][split][column].split(","), dtype=int)


def results_file(script: str) -> Path:
    return ROOT / "results" / f"{script}.jsonl"


def read_results(script: str) -> list[dict]:
    path = results_file(script)
    lines = path.read_text().splitlines() if path.exists() else []
    return [named_by_domain(json.loads(line)) for line in lines]


def write_table(script: str) -> None:
    """Writes the tables into results/<script>.md, between the marks, and draws all rows."""
    entries = read_results(script)
    path = ROOT / "results" / f"{script}.md"
    before, _, rest = path.read_text().partition(f"<!-- table: {script} -->")
    _, _, after = rest.partition("<!-- end of table -->")
    path.write_text(
        f"{before}<!-- table: {script} -->\n{render(script, entries)}\n<!-- end of table -->{after}"
    )
    rows = [row for row in ROWS[script] if any(e["row"] == row for e in entries)]
    errors, label = DRAWN.get(script, ("twins", "homophone errors, %"))
    shown = [score for score in scores_of(script) if score.errors == errors]
    bars = {
        score.name: [np.mean([score.of(e) for e in entries if e["row"] == row]) for row in rows]
        for score in shown
    }
    figures.bars(
        ROOT / "results" / f"{script}.png", rows, bars, label, f"{script}, mean over seeds"
    )


def read_command_line(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments; `rows` are the names of rows that the patterns stand for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", default="interaed_kd", choices=ROWS)
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="SEED", help="absent: five, see benchmarks/rows.py"
    )
    parser.add_argument(
        "--rows", nargs="+", default=["*"], metavar="ROW", help="names or patterns, quoted"
    )
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args(argv)
    all_rows = list(ROWS[arguments.script])
    chosen = set()
    for pattern in arguments.rows:
        matching = [row for row in all_rows if fnmatch(row, pattern)]
        if not matching:
            parser.error(f"no row {pattern}: there are {'; '.join(all_rows)}")
        chosen |= set(matching)
    arguments.rows = [row for row in all_rows if row in chosen]
    return arguments


def run_missing(arguments: argparse.Namespace) -> None:
    """Trains and scores the (row, seed) that results/<script>.jsonl lacks, seed by seed."""
    script = arguments.script
    finished = {(entry["row"], entry["seed"]) for entry in read_results(script)}
    missing = []
    for row in arguments.rows:
        for seed in arguments.seeds or SEEDS.get(row, range(1, 6)):
            if (row, seed) not in finished:
                missing.append((row, seed))
    missing.sort(key=lambda run: run[1])
    # `taskset -c 0` leaves one thread.
    threads = max(1, len(os.sched_getaffinity(0)) // arguments.jobs)
    results_file(script).parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = {}
        for row, seed in missing:
            runs[pool.submit(run_one, script, row, seed, threads)] = (row, seed)
        for future in as_completed(runs):
            error = future.exception()
            if error:  # the others go on
                print(*runs[future], f"failed: {error}", file=sys.stderr, flush=True)
                continue
            result = future.result()
            with open(results_file(script), "a") as file:
                file.write(json.dumps(result) + "\n")
            print(*runs[future], result["wer"], result.get("homophone_error"), flush=True)


if __name__ == "__main__":
    arguments = read_command_line()
    run_missing(arguments)
    write_table(arguments.script)
