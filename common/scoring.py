"""What a recogniser is asked once it is trained: decode a set, score it, tune a search, be timed, transcribe files.

A script's recogniser is an nn.Module with a `tokenizer` and

    transcribe(batch, place, **search) -> [Transcript, ...]        one per utterance of the batch

and that is all this module knows about it. `search` are the script's own options of decoding (none: greedy).
Recordings longer than --cut-seconds are cut at pauses, in scoring as in --transcribe.
"""

from __future__ import annotations

import functools
import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import metrics
from common.corpora import Corpus, Utterance
from common.ctc import Token, word_times
from common.data import Batch, MicroBatch, evaluation_batches, loader, make_batch, say_once
from common.features import SAMPLE_RATE, AudioError, read_audio, split_at_pauses
from common.files import write_atomically
from common.flags import RunConfig, UserError
from common.place import Place, barrier, first_rank_first, gather, note, synchronise
from common.text import Tokenizer, printable, read_lines
from common.training import add_up

SUBTITLE_SECONDS = 6.0  # of audio in a subtitle, at most [choice]


class Word(NamedTuple):
    text: str
    start: float  # seconds
    end: float


class Transcript(NamedTuple):
    """What was recognised in one utterance."""

    text: str
    words: list[Word] | None = None  # None where a model gives no times
    counts: dict[str, float] = {}  # what RESULT adds up


# ---------------------------------------------------------------------------------------------------------- decoding


@torch.inference_mode()
def recognise(recogniser: nn.Module, batch: Batch, config: RunConfig, place: Place, **search) -> list[Transcript]:
    """A transcript per utterance; what is longer than --cut-seconds is cut at pauses and put together again."""
    recogniser.eval()
    if batch.samples.max() <= config.cut_seconds * SAMPLE_RATE:
        return recogniser.transcribe(batch.to(place.device), place, **search)
    found = []
    for wave, size in zip(batch.waves, batch.samples.tolist(), strict=True):
        pieces = split_at_pauses(wave[:size], config.cut_seconds)
        parts = [recogniser.transcribe(batch_of(wave[a:b]).to(place.device), place, **search)[0] for a, b in pieces]
        found.append(join(parts, [start / SAMPLE_RATE for start, _ in pieces]))
    return found


def batch_of(wave: Tensor) -> Batch:
    """One recording (samples,) as a batch without labels."""
    return make_batch([wave], [[]], [], {}, 0, MicroBatch([]))


def transcript_of(tokens: list[Token], tokenizer: Tokenizer, seconds: float) -> Transcript:
    """Of labels with their frames, each so many seconds long."""
    words = [Word(text, start * seconds, end * seconds) for text, start, end in word_times(tokens, tokenizer.decode)]
    return Transcript(tokenizer.decode([token.label for token in tokens]), words)


def join(parts: list[Transcript], starts: list[float]) -> Transcript:
    """Transcripts of pieces that follow each other, the first of which begin at `starts` seconds."""
    words, counts = [], {}
    for part, start in zip(parts, starts, strict=True):
        words += [Word(word.text, word.start + start, word.end + start) for word in part.words or []]
        add_up(counts, part.counts)
    text = " ".join(part.text for part in parts if part.text)
    return Transcript(text, None if parts[0].words is None else words, counts)


def decode(
    recogniser: nn.Module, utterances: list[Utterance], config: RunConfig, place: Place, **search
) -> dict[str, Transcript]:
    """{utterance: transcript}, shared out over the ranks. What cannot be read is named, and not in it."""
    plan, found = evaluation_batches(utterances, config.batch_seconds, place.rank, place.ranks), {}
    cancelling: dict[str, str] = {}
    quiet = None if place.first else True
    for batch in tqdm(loader(plan, config), "decoding", unit="batch", leave=False, delay=2, disable=quiet):
        for reason in batch.bad.values():
            note(f"not scored: {reason}")
        cancelling |= batch.cancelling
        if batch.utterances:
            transcripts = recognise(recogniser, batch, config, place, **search)
            found |= zip([u.id for u in batch.utterances], transcripts, strict=True)
    for name in cancelling:  # RESULT counts them
        found[name] = found[name]._replace(counts=found[name].counts | {"cancelling_channels_scored": 1})
    parts = gather((found, cancelling), place)
    if place.first:
        say_once(sorted({remark for _, remarks in parts for remark in remarks.values()}))
    return {name: transcript for part, _ in parts for name, transcript in part.items()}


def texts_of(found: dict[str, Transcript]) -> dict[str, str]:
    return {name: transcript.text for name, transcript in found.items()}


def searches(config: RunConfig, recogniser: nn.Module, place: Place, lm_class: type | None) -> list[dict]:
    """Options of `transcribe` to choose from: none for --decode greedy; else every --lm-weight with every --bonus.

    lm_class: of the language model that --lm names, built with the recogniser's tokenizer; absent: the recogniser is
    one itself, and there is nothing to be weighed.
    """
    if config.decode == "greedy":
        return [{}]
    if lm_class is None:
        return [{config.decode: getattr(config, config.decode)}]  # beam, top_k or top_p
    with first_rank_first(place):
        lm = lm_class(config.lm, "--lm", config.root, recogniser.tokenizer, place.device) if config.lm else None
    weights = config.lm_weight if lm else (0.0,)
    return [
        dict(beam=config.beam, lm=lm, lm_weight=weight, bonus=bonus) for weight in weights for bonus in config.bonus
    ]


def dev_scores(recogniser: nn.Module, corpus: Corpus, config: RunConfig, place: Place) -> dict[str, float]:
    """{"dev": see `mean_error`, "dev_homophone_error": where the corpus has homophones}, in %, decoded greedily."""
    found = texts_of(decode(recogniser, corpus.dev, config, place))
    if not found:
        raise UserError(f"none of the {len(corpus.dev)} dev utterances could be read: mend the dev set.")
    words, homophones = metrics.score({u.id: u.text for u in corpus.dev}, found, corpus.homophones)
    if not words.words:
        raise UserError("the dev utterances that could be read have no text: mend the dev set.")
    name_of_error(corpus.dev, place)  # says where it is not words that are counted
    rate = mean_error(corpus.dev, found)
    return {"dev": rate} | ({"dev_homophone_error": homophones.rate} if corpus.homophones else {})


def mean_error(utterances: list[Utterance], found: dict[str, str]) -> float:
    """The error rate in %, by which epochs, averages and searches are chosen.

    Words are counted. Characters are counted in a language whose references are written
    without spaces, since a sentence would be one word there; all of its utterances decide
    (see metrics.written_without_spaces). Of several languages the unweighted mean.

    utterances: the whole dev set. found: {utterance: text} of those that were decoded.
    """
    by_characters, rates = languages_by_characters(utterances), []
    for language, same in by_language(utterances).items():
        heard = [u for u in same if u.id in found]
        if not heard:
            continue
        count = metrics.character_errors if language in by_characters else metrics.word_errors
        errors = count([u.text for u in heard], [found[u.id] for u in heard])
        if errors.words:
            rates.append(errors.rate)
    return fmean(rates or [0.0])


def by_language(utterances: list[Utterance]) -> dict[str, list[Utterance]]:
    """The utterances of each language, in the order of their first ones."""
    found: dict[str, list[Utterance]] = {}
    for u in utterances:
        found.setdefault(u.language, []).append(u)
    return found


def languages_by_characters(utterances: list[Utterance]) -> list[str]:
    """The languages whose errors `mean_error` counts in characters."""
    found = by_language(utterances)
    return [name for name in found if metrics.written_without_spaces(u.text for u in found[name])]


@functools.cache  # which makes it once
def note_once(message: str) -> None:
    """As `note`; a message that this process has written before is not written again."""
    note(message)


def name_of_error(utterances: list[Utterance], place: Place) -> str:
    """What `mean_error` gives: WER, CER, or an error where some languages count so and some so.

    The first rank says once in the log where characters are counted.
    """
    by_characters = languages_by_characters(utterances)
    if not by_characters:
        return "WER"
    if place.first:
        which = f" of {', '.join(by_characters)}" if any(by_characters) else ""
        note_once(
            f"the dev transcripts{which} have no spaces between words: epochs and searches are "
            "chosen by errors in characters"
        )
    return "CER" if len(by_characters) == len(by_language(utterances)) else "error"


def tune(
    recogniser: nn.Module, corpus: Corpus, config: RunConfig, place: Place, searches: list[dict], some: int = 100
) -> dict:
    """The search with the lowest `mean_error` on `some` dev utterances; the only one, if there is no choice."""
    if len(searches) == 1:
        return searches[0]
    if not corpus.dev:
        raise UserError("there is no dev set to tune the search on: give one value each, as --lm-weight and --bonus.")
    sample = random.Random(config.seed).sample(corpus.dev, min(some, len(corpus.dev)))
    error, rates = name_of_error(corpus.dev, place), []
    for search in searches:
        found = texts_of(decode(recogniser, sample, config, place, **search))
        rates.append(mean_error(corpus.dev, found))
        if place.first:
            shown = (f"--{name.replace('_', '-')} {x:g}" for name, x in search.items() if isinstance(x, float))
            note(f"dev {error} {rates[-1]:.1f} % with {' '.join(shown)}")
    return searches[rates.index(min(rates))]


# ----------------------------------------------------------------------------------------------------------- scoring


def evaluate(
    recogniser: nn.Module, corpus: Corpus, config: RunConfig, place: Place, lm_class: type | None = None
) -> dict:
    """Scores every test set with the search tuned on dev, writes hyp_<split>.txt and .tsv, prints some errors of each.

    lm_class: see `searches`. Returns what RESULT says of it. Raises UserError where there is nothing to score.
    """
    search = tune(recogniser, corpus, config, place, searches(config, recogniser, place, lm_class))
    folder = Path(config.out)
    scores = {"decode": config.decode, "wer": {}, "cer": {}, "homophone_error": {}, "wer_twins_equal": {}}
    scores |= {"not_scored": 0, "cancelling_channels_scored": 0}
    folder.mkdir(parents=True, exist_ok=True)
    for split, utterances in corpus.tests.items():
        found = decode(recogniser, utterances, config, place, **search)
        if not found:
            raise UserError(f"none of the {len(utterances)} utterances of {split} could be scored: mend the set.")
        references = {u.id: u.text for u in utterances}
        words, homophones = metrics.score(references, texts_of(found), corpus.homophones)
        if not words.words:
            raise UserError(f"the utterances of {split} that could be read have no text: there is nothing to score.")
        pairs = list(zip(*((references[name], transcript.text) for name, transcript in found.items()), strict=True))
        scores["wer"][split] = round(words.rate, 2)
        scores["cer"][split] = round(metrics.character_errors(*pairs).rate, 2)
        if corpus.homophones:
            scores["homophone_error"][split] = round(homophones.rate, 2)
            scores["wer_twins_equal"][split] = round(metrics.word_errors(*pairs, corpus.homophones).rate, 2)
        scores["not_scored"] += len(utterances) - len(found) + len(corpus.missing.get(split, {}))
        for transcript in found.values():
            add_up(scores, transcript.counts)
        if place.first:
            print(summarise(split, words, homophones))
            write_hypotheses(folder, split, references, texts_of(found))
    if not scores["wer"]:
        raise UserError(f"{config.data} has no test set: give it test.jsonl, or whatever its layout calls a test set.")
    if len({u.language for utterances in corpus.tests.values() for u in utterances}) > 1:
        scores |= {f"{name}_mean": round(fmean(scores[name].values()), 2) for name in ("wer", "cer")}  # unweighted
    scores["rtf"] = real_time_factor(recogniser, corpus, config, place, **search)
    if search:
        scores["greedy_rtf"] = real_time_factor(recogniser, corpus, config, place)
        plain = (int, float, str, type(None))
        scores |= {name: x if isinstance(x, plain) else getattr(config, name) for name, x in search.items()}
    scores["missing"] = {name: len(missing) for name, missing in corpus.missing.items() if missing}  # at loading
    return scores | {"normaliser": metrics.NORMALISER, "params": parameters_by_part(recogniser)["total"]}


def summarise(split: str, words: metrics.ErrorRate, homophones: metrics.HomophoneErrors) -> str:
    line = f"{split:12} WER {words.rate:5.2f} % of {words.words} words"
    line += f" ({words.substitutions} wrong, {words.deletions} missing, {words.insertions} too many)"
    if homophones.count:
        line += f"; homophones {homophones.rate:.1f} % of {homophones.count} wrong (chance {homophones.chance:.0f} %)"
    return line


def write_hypotheses(folder: Path, split: str, references: dict[str, str], found: dict[str, str]) -> None:
    """hyp_<split>.txt for people, hyp_<split>.tsv for programs; prints the first three with errors."""
    scored = {name: text for name, text in references.items() if name in found}
    pairs = {name: metrics.side_by_side(text, found[name]) for name, text in scored.items()}
    aligned = (f"{printable(name)}\n{pair}\n" for name, pair in pairs.items())
    write_atomically(folder / f"hyp_{split}.txt", "\n".join(aligned))
    rows = (f"{printable(name)}\t{text}\t{found[name]}\n" for name, text in scored.items())
    write_atomically(folder / f"hyp_{split}.tsv", "id\treference\thypothesis\n" + "".join(rows))
    print(*[pairs[name] for name, text in scored.items() if found[name] != text][:3], sep="\n", flush=True)


def read_hypotheses(path: Path) -> list[list[str]]:
    """[[id, reference, hypothesis], ...] of a hyp_<split>.tsv."""
    return [line.split("\t") for line in read_lines(path)[1:]]


def real_time_factor(recogniser: nn.Module, corpus: Corpus, config: RunConfig, place: Place, **search) -> float | None:
    """Seconds per second of audio for features, model and search, one utterance at a time, reading excluded.

    On the first rank alone: the others would compete for its processor.
    """
    if not place.first:
        return None
    utterances = [u for split in corpus.tests.values() for u in split][:50]
    batches = [b for b in loader([MicroBatch([u]) for u in utterances], config) if b.utterances]
    for batch in batches[:3]:  # warms up
        recognise(recogniser, batch, config, place, **search)
    started = synchronise(place)
    for batch in batches:
        recognise(recogniser, batch, config, place, **search)
    seconds = sum(batch.samples.sum().item() for batch in batches) / SAMPLE_RATE
    return round((synchronise(place) - started) / seconds, 5) if batches else None


def report(result: dict, config: RunConfig, place: Place) -> dict:
    """Writes result.json and prints the RESULT line, the last of a run."""
    if place.first:
        write_atomically(Path(config.out) / "result.json", json.dumps(result, indent=1) + "\n")
        print("RESULT " + json.dumps(result), flush=True)
    barrier(place)
    return result


def compare(configs: list[RunConfig], results: list[dict]) -> dict:
    """Shows several methods below each other, and three sentences in which they differ; one: its result."""
    if len(results) == 1:
        return results[0]
    found = {result["method"]: result for result in results}
    if int(os.environ.get("RANK", 0)):  # one rank shows it
        return found
    splits = list(results[0]["wer"])
    columns = [(split, score) for split in splits for score in ("wer", "homophone_error") if results[0][score]]
    titles = ["homophone error" if score == "homophone_error" else f"{split} WER" for split, score in columns]
    means = [result.get("wer_mean") for result in results]  # of several languages
    titles = ["mean WER"] * (means[0] is not None) + titles
    widths = [max(18, len(title) + 2) for title in titles]
    print("\n" + " " * 14 + "".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True)))
    for result, mean in zip(results, means, strict=True):
        row = [x for x in (mean, *(result[score][split] for split, score in columns)) if x is not None]
        print(f"{result['method']:14}" + "".join(f"{x:>{width}.1f}" for x, width in zip(row, widths, strict=True)))
    files = (read_hypotheses(next(Path(config.out).rglob(f"hyp_{splits[0]}.tsv"))) for config in configs)
    first, *others = [{name: texts for name, *texts in rows} for rows in files]
    for name in [n for n in first if any(other.get(n, first[n]) != first[n] for other in others)][:3]:
        print(f"\n{'':14}REF: {first[name][0]}")
        for config, texts in zip(configs, [first, *others], strict=True):
            print(f"{config.method:14}{metrics.side_by_side(*texts.get(name, [first[name][0], ''])).splitlines()[1]}")
    print(flush=True)
    return found


def print_parameters(models: nn.ModuleDict) -> dict[str, int]:
    """The number of parameters of `recogniser` by part; then of whatever is trained beside it."""
    parts = parameters_by_part(models["recogniser"])
    for name, count in parts.items():
        print(f"{name:12}{count:>14,}")
    for name, model in models.items():
        if name != "recogniser":
            print(f"and {parameters_by_part(model)['total']:,} in the {name}, for training only")
    return parts


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """{part: parameters} for the model's direct children, then `total`."""
    parts = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    return parts | {"total": sum(p.numel() for p in model.parameters())}


# ------------------------------------------------------------------------------------------------------ transcribing


def transcribe_files(recogniser: nn.Module, config: RunConfig, place: Place, lm_class: type | None = None) -> dict:
    """Prints file<TAB>text, or with --times file<TAB>start<TAB>end<TAB>word in seconds; with --srt file<TAB>subtitles,
    which it writes beside the file. Nothing else goes to stdout.

    Raises UserError, once all others are done, where a file could not be read. With several ranks the first does it.
    """
    if not place.first:
        return {}
    search, *others = searches(config, recogniser, place, lm_class)
    if others:
        raise UserError("--transcribe needs one --lm-weight and one --bonus.")
    failed, targets = 0, subtitle_files(config.transcribe)
    for path in config.transcribe:
        try:
            wave = read_audio(path)
        except AudioError as error:
            failed += 1
            note(f"error: {error}")
            continue
        if config.srt:
            target = targets[path]
            if target.exists():  # perhaps somebody has mended it
                failed += 1
                note(f"error: {printable(target)} is there already: move it away")
                continue
            write_atomically(target, subtitles(recogniser, wave, config, place, **search))
            print(f"{printable(path)}\t{printable(target)}", flush=True)
            continue
        (transcript,) = recognise(recogniser, batch_of(wave), config, place, **search)
        if not config.times:
            print(f"{printable(path)}\t{transcript.text}", flush=True)
            continue
        if transcript.words is None:
            raise UserError("this model gives no word times: omit --times.")
        for word in transcript.words:
            print(f"{printable(path)}\t{word.start:.2f}\t{word.end:.2f}\t{word.text}", flush=True)
    if failed:
        raise UserError(f"{failed} of {len(config.transcribe)} files could not be read, or have subtitles already.")
    return {}


def subtitle_files(paths: Sequence[str]) -> dict[str, Path]:
    """{audio file: its subtitles}: a.srt for a.wav, but a.wav.srt and a.flac.srt for two that would share one."""
    shared = Counter(path.with_suffix(".srt") for path in {Path(name) for name in paths})
    found = {}
    for name in paths:
        path = Path(name)
        target = path.with_suffix(".srt")
        found[name] = target if shared[target] == 1 else path.with_name(f"{path.name}.srt")
    return found


def subtitles(recogniser: nn.Module, wave: Tensor, config: RunConfig, place: Place, **search) -> str:
    """SubRip of (samples,): a block per piece, cut at pauses, from its first word to its last where times are known."""
    blocks = []
    for a, b in split_at_pauses(wave, min(SUBTITLE_SECONDS, config.cut_seconds)):
        (transcript,) = recognise(recogniser, batch_of(wave[a:b]), config, place, **search)
        start, end = a / SAMPLE_RATE, b / SAMPLE_RATE
        if transcript.words:
            start, end = start + transcript.words[0].start, min(end, start + transcript.words[-1].end)
        if transcript.text:
            blocks.append(f"{len(blocks) + 1}\n{clock(start)} --> {clock(end)}\n{transcript.text}\n")
    return "\n".join(blocks)


def clock(seconds: float) -> str:
    """3725.5 -> 01:02:05,500"""
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02},{thousandths:03}"
