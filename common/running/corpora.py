"""Corpora as lists of utterances, checked where they enter.

    load_corpus("librispeech", root, hours=100) -> Corpus(train, dev, tests, ...)
    trainable(corpus.train, max_seconds)        -> those to learn from

How corpora lie on disk is in layouts.py: a layout lists the utterances that its files
name. This room does for all layouts alike what follows: it looks for the audio, reads
durations, and refuses what makes no sense.

A file `homophones.txt` beside a corpus (one pair per line) makes the score report
homophone errors. The language of an utterance is a name of letters, digits, _ and -;
all utterances of a corpus have one, or none has. If a corpus has several languages,
each must have utterances in train, dev and test.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError
from common.running import layouts
from common.running.audio import AudioError, audio_seconds
from common.running.utterances import (
    Listing,
    Utterance,
    by_session,
    check_languages,
    languages_of,
    session_order,
)
from common.text import printable, read_lines

__all__ = [
    "Corpus",
    "Utterance",
    "download",
    "first_hours",
    "languages_of",
    "load_corpus",
    "load_homophones",
    "session_order",
    "too_many_bad",
    "trainable",
    "untrainable",
]

# No speech holds more [choice]. Fast talk is 300 words a minute, of 5 letters and a space each:
# 30 characters a second. English read aloud has 15, the demo world 19, its fastest utterance 24.
CHARACTERS_PER_SECOND = 50


@dataclass(frozen=True)
class Corpus:
    train: list[Utterance]
    dev: list[Utterance]
    tests: dict[str, list[Utterance]]
    homophones: dict[str, str]  # word -> twin, both ways; empty if the corpus has no list
    # set -> {utterance: why it is missing}
    missing: dict[str, dict[str, str]] = field(default_factory=dict)


def load_corpus(
    data: str,
    root: str,
    hours: float | None = None,
    seed: int = 0,
    scoring: bool = False,
    languages: tuple[str, ...] = (),
) -> Corpus:
    """The corpus that --data names: one of `layouts.LAYOUTS`, or a folder of manifests.

    hours: the subsets that a layout has for this number (LibriSpeech's 100, 360, 460
    and 960; MLS's 1, 9 and 10 of each language). In the English demo world, so much is
    spoken. Anywhere else the first `hours` after a shuffle of whole sessions that
    depends on `seed` alone.

    scoring: train stays empty, and neither it nor dev need exist. languages: only
    these; none: all there are.

    Raises UserError if a set is absent or empty, if it lacks one of several languages,
    or if too much of train is missing.
    """
    folder = Path(os.path.expanduser(root))
    listed = layouts.list_corpus(layouts.Wanted(data, folder, hours, scoring, languages))
    languages = listed.languages or languages
    listings = listed.sets
    _refuse_nameless(listings)
    if languages:
        listings = _only(languages, listings)
    _refuse_partial_languages(listings, languages)
    sets, missing = {}, {}
    for name, listing in listings.items():
        hours = listed.hours if name == "train" else None
        sets[name], missing[name] = _admit(name, listing, hours, seed)
    train = sets.pop("train", [])
    dev = sets.pop("dev", [])
    return Corpus(train, dev, sets, load_homophones(listed.folder), missing)


def download(data: str, root: str, hours: float | None, scoring: bool) -> None:
    """Fetches what is missing of a corpus, if it is one that can be fetched.

    The arguments are those of `load_corpus`. Raises UserError.
    """
    folder = Path(os.path.expanduser(root))
    layouts.download(layouts.Wanted(data, folder, hours, scoring))


def load_homophones(folder: str | Path) -> dict[str, str]:
    """{word: twin}, both ways, from the pairs in homophones.txt.

    Raises UserError if a line is no pair.
    """
    path = Path(folder) / "homophones.txt"
    twins = {}
    for line in read_lines(path) if path.exists() else []:
        words = line.split()
        if not words:
            continue
        if len(words) != 2:
            raise UserError(f"{path}: each line must hold exactly two words that sound alike.")
        first, second = words
        twins |= {first: second, second: first}
    return twins


# ====================================================================================== languages


def _only(languages: tuple[str, ...], listings: dict[str, Listing]) -> dict[str, Listing]:
    """The utterances in these languages; a test set without any is left out."""
    check_languages(languages, _languages_in(listings))
    chosen = {}
    for name, listing in listings.items():
        kept = [u for u in listing.utterances if u.language in languages]
        if kept or name in ("train", "dev"):
            bad = {u.id: listing.bad[u.id] for u in kept if u.id in listing.bad}
            chosen[name] = Listing(kept, bad)
    return chosen


def _languages_in(listings: dict[str, Listing]) -> set[str]:
    found = {u.language for listing in listings.values() for u in listing.utterances}
    return found - {""}


def _refuse_nameless(listings: dict[str, Listing]) -> None:
    """Raises UserError if some utterances have a language and others have none."""
    utterances = [u for listing in listings.values() for u in listing.utterances]
    nameless = [u for u in utterances if not u.language]
    if 0 < len(nameless) < len(utterances):
        count = f"{len(nameless)} of {len(utterances)} utterances have no language"
        what = f"{count}, the first is {nameless[0].id}, and the others have one"
        raise UserError(f'{what}: give every line a "lang", or none.')


def _refuse_partial_languages(listings: dict[str, Listing], languages: tuple[str, ...]) -> None:
    """Raises UserError if one of several languages has no utterance in some set.

    Training, the choice of epochs and the mean of the scores are then about the same
    languages. languages: those that every set must have; none: all that any set has.
    """
    spoken = {}
    for name, listing in listings.items():
        spoken[name] = {u.language for u in listing.utterances}
    present = set().union(*spoken.values())
    if len(present) < 2 and not languages:
        return
    sets = {name: some for name, some in spoken.items() if name in ("train", "dev")}
    sets["test"] = set().union(*(spoken[name] for name in spoken if name not in sets))
    for name, some in sets.items():
        lacking = sorted((set(languages) or present) - some)
        if lacking:
            what = f"{name} has no utterance in {lacking[0]}, and other sets have"
            raise UserError(f"{what}: add some, or take that language out of all sets.")


def _refuse_lost_language(before: list[Utterance], after: list[Utterance], sentence: str) -> None:
    """Raises UserError if `after` lacks a language of `before`.

    sentence: the message; {} in it becomes the language.
    """
    lost = sorted({u.language for u in before} - {u.language for u in after})
    if lost:
        raise UserError(sentence.replace("{}", lost[0]))


# ================================================================================= what is there


def _admit(
    name: str, listing: Listing, hours: float | None, seed: int
) -> tuple[list[Utterance], dict[str, str]]:
    """The utterances of a set that are there, and {utterance: reason} for the others.

    What is left out is counted on stderr. Raises UserError if nothing is left, and in
    `train` also if too much is missing. Of a test set the score says what is missing.
    """
    if len({u.id for u in listing.utterances}) < len(listing.utterances):
        what = f"{name} gives the same id to several utterances"
        raise UserError(f"{what}: leave `id` out, or make it unique.")
    listed, bad = _measure_all(name, listing)
    utterances = first_hours(listed, hours, seed)
    if hours is not None:
        too_few = f"--hours {hours:g} has room for no utterance in {{}}: give more, or omit it."
        _refuse_lost_language(listed, utterances, too_few)
    missing = {u.id: bad[u.id] for u in utterances if u.id in bad}
    found = [u for u in utterances if u.id not in bad]
    if missing:
        first = _first(list(missing.values()), 5, "; ")
        count = f"left out {len(missing)} of {len(utterances)} utterances"
        print(f"{name}: {count}: {first}", file=sys.stderr)
    if not found:
        what = f"{name}: nothing to learn from or to check it on"
        raise UserError(f"{what}, 0 of {len(utterances)} utterances can be read.")
    usable = found
    if name == "train":
        too_many_bad(missing, len(utterances))
    else:
        usable = [u for u in found if u.text]
        if not usable:
            what = f"none of its {len(found)} utterances has text"
            raise UserError(f"{name}: nothing to check it on, {what}.")
    unusable = f"{name}: no utterance in {{}} can be read and has text: mend them."
    _refuse_lost_language(utterances, usable, unusable)
    return found, missing


def _measure_all(name: str, listing: Listing) -> tuple[list[Utterance], dict[str, str]]:
    """All utterances of a set, with durations; {utterance: what is wrong with it}."""
    title = f"reading {name}"
    total = len(listing.utterances)
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(_measure, listing.utterances)
        measured = list(tqdm(results, title, total, leave=False, disable=None, delay=2))
    bad = {utterance.id: reason for utterance, reason in measured if reason}
    return [utterance for utterance, _ in measured], bad | listing.bad


def _measure(utterance: Utterance) -> tuple[Utterance, str]:
    """The utterance with its duration, and "" or the reason why it has none.

    The duration is that of the listing, else that of the file's header.
    """
    if utterance.duration > 0:
        return utterance, ""
    try:
        duration = audio_seconds(utterance.audio) - utterance.offset
    except AudioError as error:
        return utterance, str(error)
    if duration <= 0:
        where = f"after {utterance.offset:.2f} s"
        return utterance, f"{printable(utterance.audio)} holds no audio {where}"
    return replace(utterance, duration=duration), ""


def too_many_bad(bad: dict[str, str], of: int) -> None:
    """Raises UserError with a list if more than 10, and more than 1 %, cannot be read.

    bad: utterance -> reason; of: utterances of the set, the bad ones included.
    """
    if len(bad) > max(10, of // 100):
        listed = _first(list(bad.values()), 100, "\n  ")
        what = f"{len(bad)} of {of} utterances cannot be read, mend or remove them"
        raise UserError(f"{what}:\n  {listed}")


def _first(items: list[str], n: int, separator: str) -> str:
    """The first n items, and how many more there are."""
    more = [f"and {len(items) - n} more"] if len(items) > n else []
    return separator.join(items[:n] + more)


def first_hours(utterances: list[Utterance], hours: float | None, seed: int) -> list[Utterance]:
    """Whole sessions in an order drawn from `seed`, until they hold `hours` hours.

    None: all utterances, in their order.
    """
    if hours is None:
        return utterances
    sessions = by_session(utterances)
    order = list(sessions)
    random.Random(seed).shuffle(order)
    chosen, seconds = [], 0.0
    for session in order:
        if seconds >= 3600 * hours:
            break
        chosen += sessions[session]
        seconds += sum(u.duration for u in sessions[session])
    return chosen


# =========================================================================== what can be learnt


def with_tests_of(corpus: Corpus, data: str, other: str, root: str) -> Corpus:
    """The corpus, which --data `data` names, with the test sets of another one.

    A test set of the other corpus whose name is taken gets its corpus in front.
    """
    if Path(other) == Path(data):
        return corpus
    more = load_corpus(other, root, scoring=True)
    tests = {}
    for name, utterances in more.tests.items():
        if name in corpus.tests:
            name = f"{Path(other).name}-{name}"
        tests[name] = utterances
    twins = more.homophones | corpus.homophones
    return replace(corpus, tests=tests | corpus.tests, homophones=twins)


def trainable(utterances: list[Utterance], max_seconds: float) -> list[Utterance]:
    """The utterances to learn from. The others are counted on stderr.

    Raises UserError if none is left.
    """
    reasons = [untrainable(u, max_seconds) for u in utterances]
    kept = [u for u, reason in zip(utterances, reasons, strict=True) if not reason]
    counts = Counter(filter(None, reasons))
    left_out = f"{counts.total()} of {len(utterances)} training utterances are left out"
    left_out += "".join(f", {count} {reason}" for reason, count in counts.items())
    if not kept:
        raise UserError(f"there is nothing to learn from: {left_out}.")
    _refuse_lost_language(utterances, kept, f"there is nothing to learn from in {{}}: {left_out}.")
    if counts:
        print(left_out, file=sys.stderr)
    return kept


def untrainable(utterance: Utterance, max_seconds: float) -> str:
    """The reason why nothing can be learnt from an utterance, or ""."""
    if not utterance.text:
        return "without text"
    if not utterance.duration <= max_seconds:
        return f"longer than --max-seconds {max_seconds:g}"
    if len(utterance.text) > CHARACTERS_PER_SECOND * utterance.duration:
        return f"with more than {CHARACTERS_PER_SECOND} characters a second"
    return ""
