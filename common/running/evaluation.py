"""Scores of a recogniser: on dev after every epoch, on the test sets at the end.

The functions take a recogniser and a `config` as `decoding.py` describes them.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

from common import metrics
from common.errors import UserError, note_once
from common.features import SAMPLE_RATE
from common.files import write_atomically
from common.running import options, provenance
from common.running.batches import MicroBatch, loader
from common.running.corpora import Corpus, Utterance
from common.running.decoding import Transcript, decode, recognise, searches, texts_of
from common.running.hypotheses import read_hypotheses, write_hypotheses
from common.running.process import Place, barrier, note, synchronise
from common.running.report import write_when_scored
from common.running.updates import add_up

# ==================================================================================== scores


def dev_scores(
    recogniser: nn.Module, corpus: Corpus, config: Any, place: Place
) -> dict[str, float]:
    """The scores on dev, %: `mean_error`, and homophone errors if there are any."""
    found = texts_of(decode(recogniser, corpus.dev, config, place))
    if not found:
        raise UserError(
            f"none of the {len(corpus.dev)} dev utterances could be read: mend the dev set."
        )
    references = {u.id: u.text for u in corpus.dev}
    words, homophones = metrics.score(references, found, corpus.homophones)
    if not words.words:
        raise UserError("the dev utterances that could be read have no text: mend the dev set.")
    name_of_error(corpus.dev, place)  # says where it is not words that are counted
    scores = {"dev": mean_error(corpus.dev, found)}
    if corpus.homophones:
        scores["dev_homophone_error"] = homophones.rate
    return scores


def mean_error(utterances: list[Utterance], found: dict[str, str]) -> float:
    """The error rate, %, by which epochs and searches are chosen: a mean of languages.

    Words are counted. Characters are counted in a language whose references are written
    without spaces, since a sentence would be one word there; all utterances decide
    about that, see `metrics.written_without_spaces`.

    utterances: the whole dev set. found: {utterance: text} of those that were decoded.
    """
    by_characters = languages_by_characters(utterances)
    rates = []
    for language, same in by_language(utterances).items():
        decoded = [u for u in same if u.id in found]
        if not decoded:
            continue
        count = metrics.word_errors
        if language in by_characters:
            count = metrics.character_errors
        errors = count([u.text for u in decoded], [found[u.id] for u in decoded])
        if errors.words:
            rates.append(errors.rate)
    return fmean(rates or [0.0])


def by_language(utterances: list[Utterance]) -> dict[str, list[Utterance]]:
    """The utterances of each language, in the order of their first ones."""
    found: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        found.setdefault(utterance.language, []).append(utterance)
    return found


def languages_by_characters(utterances: list[Utterance]) -> list[str]:
    """The languages whose errors `mean_error` counts in characters."""
    names = []
    for name, same in by_language(utterances).items():
        if metrics.written_without_spaces(u.text for u in same):
            names.append(name)
    return names


def name_of_error(utterances: list[Utterance], place: Place) -> str:
    """What `mean_error` counts: WER, CER, or "error" where languages differ.

    The first rank says once in the log where characters are counted.
    """
    by_characters = languages_by_characters(utterances)
    if not by_characters:
        return "WER"
    if place.first:
        which = f" of {', '.join(by_characters)}" if any(by_characters) else ""
        how = "have no spaces between words: epochs and searches are chosen by errors in characters"
        note_once(f"the dev transcripts{which} {how}")
    return "CER" if len(by_characters) == len(by_language(utterances)) else "error"


def tune(
    recogniser: nn.Module, corpus: Corpus, config: Any, place: Place, choices: list[dict]
) -> dict[str, Any]:
    """The search with the fewest errors on 100 dev utterances, if there are several."""
    if len(choices) == 1:
        return choices[0]
    if not corpus.dev:
        raise UserError("there is no dev set to tune on: give one --lm-weight and one --bonus.")
    sample = random.Random(config.seed).sample(corpus.dev, min(100, len(corpus.dev)))
    error = name_of_error(corpus.dev, place)
    rates = []
    for search in choices:
        found = texts_of(decode(recogniser, sample, config, place, **search))
        rates.append(mean_error(corpus.dev, found))
        if place.first:
            shown = f"--lm-weight {search['lm_weight']:g} --bonus {search['bonus']:g}"
            note(f"dev {error} {rates[-1]:.1f} % with {shown}")
    return choices[rates.index(min(rates))]


def evaluate(recogniser: nn.Module, corpus: Corpus, config: Any, place: Place) -> dict[str, Any]:
    """Scores every test set with the search that was tuned on dev; returns what RESULT
    says.

    Writes hyp_<split>.txt and .tsv and scored.json, and prints some errors of each set.
    Raises UserError where there is nothing to score.
    """
    search = tune(recogniser, corpus, config, place, searches(config, recogniser, place))
    Path(config.out).mkdir(parents=True, exist_ok=True)
    if not corpus.tests:
        raise UserError(f"{config.data} has no test set: give it a test.jsonl.")
    scores: dict[str, Any] = {"decode": config.search.decode}
    scores |= {name: {} for name in metrics.METRICS}
    scores |= {"not_scored": 0, "cancelling_channels_scored": 0}
    not_scored: dict[str, dict[str, str]] = {}  # set -> {utterance: why}
    for split, utterances in corpus.tests.items():
        not_scored[split] = {}
        found = decode(recogniser, utterances, config, place, not_scored[split], **search)
        for name, rate in score_split(split, utterances, found, corpus.homophones).items():
            scores[name][split] = rate
        missing = len(corpus.missing.get(split, {}))  # at loading
        scores["not_scored"] += len(utterances) - len(found) + missing
        for transcript in found.values():
            add_up(scores, transcript.counts)
        if place.first:
            show_split(config, split, utterances, texts_of(found), corpus.homophones)
    if place.first:
        provenance.write(config, corpus, not_scored, place)
    languages = {u.language for utterances in corpus.tests.values() for u in utterances}
    if len(languages) > 1:
        for name in ("wer", "cer"):
            scores[f"{name}_mean"] = round(fmean(scores[name].values()), 2)  # unweighted
    if "embeddings" in scores:  # of models that read vectors of speech
        seconds = sum(u.duration for split in corpus.tests.values() for u in split)
        scores["embeddings_per_second"] = round(scores["embeddings"] / seconds, 2)
    scores |= describe_search(recogniser, corpus, config, place, search)
    scores["missing"] = {name: len(bad) for name, bad in corpus.missing.items() if bad}
    scores["normaliser"] = metrics.NORMALISER
    scores["params"] = parameters_by_part(recogniser)["total"]
    return scores


def score_split(
    split: str, utterances: list[Utterance], found: dict[str, Transcript], twins: dict[str, str]
) -> dict[str, float]:
    """{metric: %} over those utterances of a test set that could be read.

    Raises UserError if there is none.
    """
    if not found:
        raise UserError(
            f"none of the {len(utterances)} utterances of {split} could be scored: mend the set."
        )
    references = [u.text for u in utterances if u.id in found]
    if not any(text.split() for text in references):
        raise UserError(
            f"the utterances of {split} that could be read have no text: there is nothing to score."
        )
    hypotheses = [found[u.id].text for u in utterances if u.id in found]
    rates = {}
    for name, metric in metrics.METRICS.items():
        if twins or not metric.needs_twins:
            rates[name] = round(metric.rate(references, hypotheses, twins), 2)
    return rates


def show_split(
    config: Any,
    split: str,
    utterances: list[Utterance],
    found: dict[str, str],
    twins: dict[str, str],
) -> None:
    """Prints the errors of a test set and three sentences, writes all hypotheses."""
    references = {u.id: u.text for u in utterances}
    words, homophones = metrics.score(references, found, twins)
    print(summarise(split, words, homophones))
    write_hypotheses(Path(config.out), split, utterances, found, config.root)


def describe_search(
    recogniser: nn.Module, corpus: Corpus, config: Any, place: Place, search: dict[str, Any]
) -> dict[str, Any]:
    """What RESULT says of the search: its options and its real-time factor."""
    described: dict[str, Any] = {
        "rtf": real_time_factor(recogniser, corpus, config, place, **search)
    }
    if not search:
        return described
    described["greedy_rtf"] = real_time_factor(recogniser, corpus, config, place)
    for name, value in search.items():
        described[name] = config.search.lm if name == "lm" else value
    return described


def summarise(split: str, words: metrics.ErrorRate, homophones: metrics.HomophoneErrors) -> str:
    counts = f"{words.substitutions} wrong, {words.deletions} missing, {words.insertions} too many"
    line = f"{split:12} WER {words.rate:5.2f} % of {words.words} words ({counts})"
    if homophones.count:
        line += f"; homophones {homophones.rate:.1f} % of {homophones.count} wrong"
        line += f" (chance {homophones.chance:.0f} %)"
    return line


def real_time_factor(
    recogniser: nn.Module, corpus: Corpus, config: Any, place: Place, **search: Any
) -> float | None:
    """Seconds for features, model and search per second of audio, one by one.

    Reading does not count. Only the first rank measures, so that others take no time.
    """
    if not place.first:
        return None
    utterances = [u for split in corpus.tests.values() for u in split][:50]
    plan = [MicroBatch([u]) for u in utterances]
    batches = [batch for batch in loader(plan, config) if batch.utterances]
    if not batches:
        return None
    for batch in batches[:3]:  # to warm up
        recognise(recogniser, batch, config, place, **search)
    started = synchronise(place)
    for batch in batches:
        recognise(recogniser, batch, config, place, **search)
    took = synchronise(place) - started
    seconds = sum(batch.samples.sum().item() for batch in batches) / SAMPLE_RATE
    return round(took / seconds, 5)


# =================================================================================== results


def head_of_result(config: Any) -> dict[str, Any]:
    """What RESULT begins with."""
    head = {"script": options.script_of(config), "method": config.method, "seed": config.seed}
    if config.variant:
        head["variant"] = config.variant
    return head


def report(result: dict[str, Any], config: Any, place: Place) -> dict[str, Any]:
    """Writes result.json and prints the RESULT line, the last one of a run."""
    if place.first:
        write_atomically(Path(config.out) / "result.json", json.dumps(result, indent=1) + "\n")
        print("RESULT " + json.dumps(result), flush=True)
    barrier(place)
    return result


def compare(folders: list[str | Path], results: list[dict[str, Any]]) -> None:
    """Prints several results below each other, and three sentences that differ.

    folders: where each run's hypotheses are.
    """
    if int(os.environ.get("RANK", 0)):  # one rank prints
        return
    names = [name_of(result) for result in results]
    print_table(names, results)
    split = next(iter(results[0]["wer"]))
    found = []
    for folder in folders:
        rows = read_hypotheses(next(Path(folder).rglob(f"hyp_{split}.tsv")))
        found.append({row[0]: row[1:] for row in rows})
    first = found[0]
    differing = [name for name in first if differs(name, found)]
    for utterance in differing[:3]:
        reference = first[utterance][0]
        print(f"\n{'':14}REF: {reference}")
        for name, texts in zip(names, found, strict=True):
            hypothesis = texts.get(utterance, [reference, ""])[1]
            print(f"{name:14}{metrics.side_by_side(reference, hypothesis).splitlines()[1]}")
    print(flush=True)


def differs(name: str, found: list[dict[str, list[str]]]) -> bool:
    """Whether the results that have this utterance differ in its hypothesis."""
    texts = {tuple(rows[name]) for rows in found if name in rows}
    return len(texts) > 1


def compare_methods(configs: list[Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Prints the results of several methods, and writes their pages.

    Returns the results by method; of one, its result.
    """
    folders = [config.out for config in configs]
    if len(results) == 1:
        write_when_scored(folders)
        return results[0]
    compare(folders, results)
    write_when_scored(folders)
    return {result["method"]: result for result in results}


def name_of(result: dict[str, Any]) -> str:
    return result.get("variant") or result["method"]


def print_table(names: list[str], results: list[dict[str, Any]]) -> None:
    """Prints a line per result: mean WER, then WER and homophone errors of each set."""
    columns = []  # (title, value of a result)
    if "wer_mean" in results[0]:
        columns.append(("mean WER", [result["wer_mean"] for result in results]))
    for split in results[0]["wer"]:
        columns.append((f"{split} WER", [result["wer"].get(split) for result in results]))
        if results[0].get("homophone_error"):
            rates = [result.get("homophone_error", {}).get(split) for result in results]
            columns.append(("homophone error", rates))
    widths = [max(18, len(title) + 2) for title, _ in columns]
    titles = [f"{title:>{width}}" for (title, _), width in zip(columns, widths, strict=True)]
    print("\n" + " " * 14 + "".join(titles))
    for i, name in enumerate(names):
        cells = []
        for (_, values), width in zip(columns, widths, strict=True):
            cells.append(" " * width if values[i] is None else f"{values[i]:>{width}.1f}")
        print(f"{name:14}" + "".join(cells))


def print_parameters(models: nn.ModuleDict | dict[str, nn.Module]) -> dict[str, int]:
    """Prints the parameters of the recogniser by part, and of what else is trained."""
    parts = parameters_by_part(models["recogniser"])
    for name, count in parts.items():
        print(f"{name:12}{count:>14,}")
    for name, model in models.items():
        if name != "recogniser":
            print(f"and {parameters_by_part(model)['total']:,} in the {name}, for training only")
    return parts


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """{part: parameters} of the model's direct children, then `total`."""
    parts = {}
    for name, child in model.named_children():
        parts[name] = sum(p.numel() for p in child.parameters())
    parts["total"] = sum(p.numel() for p in model.parameters())
    return parts
