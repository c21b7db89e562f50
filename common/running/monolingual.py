"""A recogniser for each language, in folders inside of one.

results = [run_method(one) for one in one_per_language(config)]
return report(config, results)
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from common.errors import UserError
from common.running import evaluation
from common.running.batches import read_corpus
from common.running.command_line import is_run
from common.running.corpora import languages_of
from common.running.options import RunConfig, with_values
from common.running.process import gather, join, start

COUNTS = ("not_scored", "train_seconds", "skipped_updates", "infeasible", "bad_files")


def one_per_language(config: RunConfig) -> list[RunConfig]:
    """The configurations of the languages of the dev set, each with a folder in --out.

    Opens --out. Raises UserError where a test set holds several languages.
    """
    place = start(config)
    corpus = read_corpus(config, place)
    for name, utterances in corpus.tests.items():
        if len({utterance.language for utterance in utterances}) > 1:
            what = f"{name}.jsonl holds several languages"
            raise UserError(f"{what}: split it into {name}-LANGUAGE.jsonl.")
    out = Path(config.out)
    languages = languages_of(corpus.dev)
    begun = gather([is_run(out / language) for language in languages], place)[0]
    configs = []
    for language, has_begun in zip(languages, begun, strict=True):
        resume = config.resume and has_begun
        folder = str(out / language)
        configs.append(with_values(config, languages=(language,), out=folder, resume=resume))
    return configs


def report(config: RunConfig, results: list[dict[str, Any]]) -> dict[str, Any]:
    """For RESULT: scores by test set, sums of counts, and means over languages."""
    first = results[0]
    merged = {name: first[name] for name in ("script", "method", "seed", "decode", "normaliser")}
    for name, value in first.items():
        if isinstance(value, dict):
            merged[name] = {}
            for result in results:
                merged[name] |= result[name]
        elif name in COUNTS:
            merged[name] = sum(result[name] for result in results)
    for name in ("wer", "cer"):
        merged[f"{name}_mean"] = round(fmean(merged[name].values()), 2)
    return evaluation.report(merged, config, join(config.device, config.precision))
