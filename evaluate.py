"""Scores finished runs: on their own or other data, greedily or by beam search.

Run
---
    python evaluate.py RUN                              as at the end of its training
    python evaluate.py RUN RUN                          side by side
    python evaluate.py RUN --data librispeech --root ~/corpora
    python evaluate.py RUN --decode beam --lm demo/lm   with a language model
    python evaluate.py RUN --summary                    parameters by part

RUN is the folder of a finished run of any script. Scores, result.json, the hypotheses
and a page, report.html, go to RUN/score-<data>, or to --out; the page of several runs
is compared.html in the folder that holds them all. Several values of --lm-weight and
--bonus are tried on 100 dev utterances.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from common.errors import UserError
from common.running import command_line, corpora, decoding, evaluation, options, runs
from common.running.options import Positive, Search, Seconds
from common.running.process import Place, first_rank_first, join, open_scores
from common.running.report import write_when_scored


@dataclass(frozen=True)
class Evaluation:
    """What is scored, and how."""

    runs: tyro.conf.Positional[tuple[str, ...]]  # folders of finished runs
    data: str | None = None  # None: what the run was trained on
    root: str = "data"  # where corpora are, and where demo worlds are built
    languages: tuple[str, ...] = ()  # of the corpus; none: those of the run, or all
    out: str = "auto"  # auto: RUN/score-<data>; several runs: each in a folder inside
    base: str | None = None  # where the pretrained model is now, if it has moved
    summary: bool = False  # print the number of parameters by part, and stop
    device: str = "auto"  # cpu, cuda or cuda:N; auto: cuda if there is one
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of networks; auto: bf16 on a GPU
    workers: int = 4  # processes that read audio; 0: this process reads
    batch_seconds: Positive = 400.0  # padded audio per forward pass and GPU: memory decides
    cut_seconds: Seconds | None = None  # longer recordings are cut at pauses; None: as in the run
    seed: tyro.conf.Suppress[int] = 1  # of the dev utterances drawn for tuning: the run's
    search: Search = Search()

    def check(self) -> None:
        """Raises UserError for values that make no sense."""
        if not self.runs:
            raise UserError("give the folder of a finished run.")
        options.check_values(self)
        options.check_device(self.device)


def score_run(given: Evaluation, folder: str, place: Place) -> tuple[Evaluation, dict]:
    """Scores one run; returns the evaluation with its folder, and what RESULT says."""
    run = runs.load_run(folder, place, given.root, given.base)
    data = given.data or run.config.data
    changes = {
        "data": data,
        "languages": given.languages or run.config.languages,
        "seed": run.config.seed,
        "cut_seconds": given.cut_seconds or run.config.cut_seconds,
        "out": str(out_of(given, run.folder, data)),
    }
    chosen = replace(given, **changes)
    decoding.check_search(run.recogniser, chosen.search)
    if place.first:
        open_scores(Path(chosen.out))
    with first_rank_first(place):
        corpus = corpora.load_corpus(
            data, given.root, seed=run.config.seed, scoring=True, languages=chosen.languages
        )
    result = evaluation.head_of_result(run.config) | {"run": str(run.folder)}
    result |= evaluation.evaluate(run.recogniser, corpus, chosen, place)
    return chosen, evaluation.report(result, chosen, place)


def out_of(given: Evaluation, run: Path, data: str) -> Path:
    """The folder for the scores of a run."""
    if given.out == "auto":
        decode = "" if given.search.decode == "greedy" else f"-{given.search.decode}"
        return run / f"score-{Path(data).name or 'data'}{decode}"
    if len(given.runs) == 1:
        return Path(given.out)
    return Path(given.out) / "-".join(run.parts[-2:])


def read_command_line(argv: list[str] | None) -> Evaluation:
    """The checked options. argv: None for the program's own."""
    return command_line.read_checked("python evaluate.py", __doc__, Evaluation(runs=()), argv)


def main(argv: list[str] | None = None) -> dict | list[dict]:
    """Scores the runs on the command line. Returns what RESULT says, a list for several
    runs."""
    given = read_command_line(argv)
    place = join(given.device, given.precision)
    if given.summary:
        loaded = [runs.load_run(folder, place, given.root, given.base) for folder in given.runs]
        counts = [evaluation.print_parameters({"recogniser": run.recogniser}) for run in loaded]
        return counts[0] if len(counts) == 1 else counts
    scored = [score_run(given, folder, place) for folder in given.runs]
    results = [result for _, result in scored]
    folders = [chosen.out for chosen, _ in scored]
    if len(results) > 1:
        evaluation.compare(folders, results)
    # Beside runs that were trained together lies the page of their training.
    write_when_scored(folders, together="compared.html")
    return results[0] if len(results) == 1 else results


if __name__ == "__main__":
    main()
