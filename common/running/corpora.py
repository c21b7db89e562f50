"""Corpora as lists of utterances, checked where they enter.

    load_corpus("librispeech", root, hours=100) -> Corpus(train, dev, tests, homophones, missing)
    trainable(corpus.train, max_seconds)        -> those to learn from

Three layouts are read: LibriSpeech's and that of Multilingual LibriSpeech (the demo
worlds are written in them), and JSONL manifests in NeMo's convention: one JSON object
per line with `audio_filepath` (relative to the manifest), `text` and, if wanted,
`duration`, `offset` (both in seconds), `channel`, `id`, `speaker`, `session`, `lang`. A
file `homophones.txt` beside a corpus (one pair per line) makes the score report
homophone errors.

A `lang` is a name of letters, digits, _ and -, and stands on every line or on none.
Where a corpus has several languages, each must have its part in train, dev and test.

A layout only lists what it names; `_admit` then looks what is there, for all layouts
alike.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from common import demo
from common.demo import multilingual, spontaneous
from common.errors import UserError
from common.running.audio import AudioError, audio_seconds
from common.running.downloads import download_librispeech
from common.text import normalise, printable, read_lines

# hours -> subsets of LibriSpeech (Panayotov et al., ICASSP 2015; openslr.org/12)
LIBRISPEECH_TRAIN = {
    100: ["train-clean-100"],
    360: ["train-clean-360"],
    460: ["train-clean-100", "train-clean-360"],
    960: ["train-clean-100", "train-clean-360", "train-other-500"],
}
LIBRISPEECH_SCORED = ["dev-clean", "dev-other", "test-clean", "test-other"]
# Multilingual LibriSpeech (Pratap et al., Interspeech 2020; openslr.org/94), from the most training audio to the least
MLS_LANGUAGES = (
    "english",
    "german",
    "dutch",
    "french",
    "spanish",
    "italian",
    "portuguese",
    "polish",
)
MLS_LIMITED = {
    1: ["1hr/*"],
    9: ["9hr"],
    10: ["1hr/*", "9hr"],
}  # hours of each language -> lists, 1hr/0 … 5 of 10 min
DEMO_WORLDS = {"demo": False, "demo-smoke": True}  # name -> whether it is the small one
DEMO_MLS_WORLDS = {"demo-mls": False, "demo-mls-smoke": True}
SPONTANEOUS = {
    "demo-spontaneous": False,
    "demo-spontaneous-smoke": True,
}  # another domain, as manifests
# No speech holds more [choice]: fast talk is 300 words a minute of 5 letters and a space each, 30 characters a second;
# English read aloud has 15, the demo world 19, and its fastest utterance 24.
CHARACTERS_PER_SECOND = 50
LARGEST = 1e9  # seconds of a duration or offset, and channels; no file has more
LANGUAGE = re.compile(r"[\w-]{1,40}")  # a `lang`: a name, never a path, for it also names folders
MLS_ENDINGS = (".flac", ".opus")


@dataclass(frozen=True)
class Utterance:
    """A stretch of an audio file and its words (normalised)."""

    id: str
    audio: str  # path of the file
    text: str
    duration: float  # seconds; 0 in a listing: not known before the file's header is read
    offset: float = 0.0  # seconds from the start of the file
    channel: int | None = None  # None: the mean of all channels
    speaker: str = ""
    session: str = ""  # chapter or conversation; utterances of a session are listed in the order they were spoken
    language: str = ""


@dataclass(frozen=True)
class Corpus:
    train: list[Utterance]
    dev: list[Utterance]
    tests: dict[str, list[Utterance]]
    homophones: dict[str, str]  # word -> twin, both ways; empty where the corpus has no list
    missing: dict[str, dict[str, str]] = field(
        default_factory=dict
    )  # set -> {utterance: why it is not there}


Listing = tuple[
    list[Utterance], dict[str, str]
]  # the utterances a set names; {utterance: what is wrong with its line}


def load_corpus(
    data: str,
    root: str,
    hours: float | None = None,
    download: bool = False,
    seed: int = 0,
    scoring: bool = False,
    languages: tuple[str, ...] = (),
) -> Corpus:
    """data: demo | demo-spontaneous | demo-mls | librispeech | mls | a folder with
    train, dev and test*.jsonl.

    hours: LibriSpeech's 100, 360, 460, 960 pick its subsets, MLS's 1, 9 and 10 (of each
    language) its own; in the English demo world so much is spoken; anywhere else the
    first `hours` after a shuffle of whole sessions that depends on `seed` alone.
    scoring: train stays empty, and neither it nor dev need exist. languages: only
    those; none: all there are. Raises UserError where a set is absent or empty, where
    it lacks one of several languages, or where too much of train is missing.
    """
    if data in DEMO_WORLDS:
        folder, subsets = _build_demo(data, root, hours, scoring)
        listings, hours = _list_librispeech(folder, subsets, scoring), None
    elif data == "librispeech":
        folder = _find_librispeech(root, hours, download, scoring)
        subsets = LIBRISPEECH_TRAIN.get(hours)
        listings = _list_librispeech(folder, subsets or _subsets(folder, "train-*"), scoring)
        hours = None if subsets else hours
    elif data in DEMO_MLS_WORLDS or data == "mls":
        folder, languages = _find_mls(data, root, languages)
        limited = MLS_LIMITED.get(hours) if data == "mls" else None
        listings, hours = _list_mls(folder, languages, limited, scoring), None if limited else hours
    else:
        folder = (
            _build_spontaneous(data, root)
            if data in SPONTANEOUS
            else Path(os.path.expanduser(data))
        )
        listings = _list_manifests(folder, scoring)
    sets, missing = {}, {}
    _refuse_nameless(listings)
    if languages:
        listings = _only(languages, listings)
    _refuse_partial_languages(listings, languages)
    for name, listing in listings.items():
        sets[name], missing[name] = _admit(name, listing, hours if name == "train" else None, seed)
    return Corpus(
        sets.pop("train", []), sets.pop("dev", []), sets, load_homophones(folder), missing
    )


def _only(languages: tuple[str, ...], listings: dict[str, Listing]) -> dict[str, Listing]:
    """Without utterances of other languages, and without sets that had nothing else."""
    _check_languages(
        languages, {u.language for utterances, _ in listings.values() for u in utterances} - {""}
    )
    chosen = {}
    for name, (utterances, bad) in listings.items():
        kept = [u for u in utterances if u.language in languages]
        if kept or name in ("train", "dev"):
            chosen[name] = kept, {u.id: bad[u.id] for u in kept if u.id in bad}
    return chosen


def _check_languages(languages: Iterable[str], known: Iterable[str]) -> None:
    if unknown := [language for language in languages if language not in known]:
        there = ", ".join(sorted(known)) or f"none that are named. {NAME_THEM}"
        raise UserError(f"--languages {printable(unknown[0])}: the corpus has {there.rstrip('.')}.")


NAME_THEM = 'Every line of a manifest needs its language here, as "lang": "german".'


def languages_of(utterances: list[Utterance]) -> list[str]:
    """The languages of utterances, in alphabetical order.

    Raises UserError where an utterance has none, and says what a manifest needs.
    """
    nameless = [u for u in utterances if not u.language]
    if nameless:
        count = f"{len(nameless)} of {len(utterances)} utterances"
        raise UserError(f"{count} have no language, the first is {nameless[0].id}. {NAME_THEM}")
    return sorted({u.language for u in utterances})


def _refuse_nameless(listings: dict[str, Listing]) -> None:
    """Raises UserError where some utterances have a language and others have none."""
    utterances = [u for listing in listings.values() for u in listing[0]]
    nameless = [u for u in utterances if not u.language]
    if 0 < len(nameless) < len(utterances):
        raise UserError(
            f"{len(nameless)} of {len(utterances)} utterances have no language, the first is "
            f'{nameless[0].id}, and the others have one: give every line a "lang", or none.'
        )


def _refuse_partial_languages(listings: dict[str, Listing], languages: tuple[str, ...]) -> None:
    """Raises UserError where one of several languages would silently be left out
    somewhere.

    languages: those asked for; none: all that any set has. Training, the choice of
    epochs and the mean of the scores are then about the same languages.
    """
    spoken = {name: {u.language for u in listing[0]} for name, listing in listings.items()}
    present = set().union(*spoken.values())
    if len(present) < 2 and not languages:
        return
    sets = {name: some for name, some in spoken.items() if name in ("train", "dev")}
    sets["test"] = set().union(*(spoken[name] for name in spoken if name not in sets))
    for name, some in sets.items():
        lacking = sorted((set(languages) or present) - some)
        if lacking:
            raise UserError(
                f"{name} has no utterance in {lacking[0]}, and other sets have: add some, or take "
                "that language out of all sets."
            )


def _refuse_lost_language(before: list[Utterance], after: list[Utterance], sentence: str) -> None:
    """Raises UserError with the sentence, in which {} is a language that `after` has
    lost."""
    lost = sorted({u.language for u in before} - {u.language for u in after})
    if lost:
        raise UserError(sentence.replace("{}", lost[0]))


def _admit(
    name: str, listing: Listing, hours: float | None, seed: int
) -> tuple[list[Utterance], dict[str, str]]:
    """The utterances of a set, with durations; {utterance: reason} for those left out,
    which are counted on stderr.

    Raises UserError where none is left, and in `train` where too many are missing (of a
    test set, the score says so).
    """
    utterances, bad = listing
    if len({u.id for u in utterances}) < len(utterances):
        raise UserError(
            f"{name} gives the same id to several utterances: leave `id` out, or make it unique."
        )
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(_measure, utterances)
        measured = list(
            tqdm(results, f"reading {name}", len(utterances), leave=False, disable=None, delay=2)
        )
    bad = {utterance.id: reason for utterance, reason in measured if reason} | bad
    listed = [utterance for utterance, _ in measured]
    utterances = first_hours(listed, hours, seed)
    if hours is not None:
        too_few = f"--hours {hours:g} has room for no utterance in {{}}: give more, or omit it."
        _refuse_lost_language(listed, utterances, too_few)
    missing = {u.id: bad[u.id] for u in utterances if u.id in bad}
    found = [u for u in utterances if u.id not in bad]
    if missing:
        first = _first(list(missing.values()), 5, "; ")
        print(
            f"{name}: left out {len(missing)} of {len(utterances)} utterances: {first}",
            file=sys.stderr,
        )
    if not found:
        raise UserError(
            f"{name}: nothing to learn from or to check it on, 0 of {len(utterances)} utterances can be read."
        )
    if name == "train":
        too_many_bad(missing, len(utterances))
    elif not any(u.text for u in found):
        raise UserError(
            f"{name}: nothing to check it on, none of its {len(found)} utterances has text."
        )
    unusable = f"{name}: no utterance in {{}} can be read and has text: mend them."
    usable = found if name == "train" else [u for u in found if u.text]
    _refuse_lost_language(utterances, usable, unusable)
    return found, missing


def _measure(utterance: Utterance) -> tuple[Utterance, str]:
    """With the duration from the file's header where the listing has none; and why
    there is none, or "" ."""
    if utterance.duration > 0:
        return utterance, ""
    try:
        duration = audio_seconds(utterance.audio) - utterance.offset
    except AudioError as error:
        return utterance, str(error)
    if duration <= 0:
        return (
            utterance,
            f"{printable(utterance.audio)} holds no audio after {utterance.offset:.2f} s",
        )
    return replace(utterance, duration=duration), ""


def too_many_bad(bad: dict[str, str], of: int) -> None:
    """Raises UserError with a list where more than 10 and more than 1 % of a set cannot
    be read.

    bad: utterance -> reason; of: utterances of the set, the bad ones among them.
    """
    if len(bad) > max(10, of // 100):
        listed = _first(list(bad.values()), 100, "\n  ")
        raise UserError(
            f"{len(bad)} of {of} utterances cannot be read, mend or remove them:\n  {listed}"
        )


def _first(items: list[str], n: int, separator: str) -> str:
    return separator.join(items[:n]) + (
        f"{separator}and {len(items) - n} more" if len(items) > n else ""
    )


def trainable(utterances: list[Utterance], max_seconds: float) -> list[Utterance]:
    """Those to learn from; the others are counted on stderr. Raises UserError where
    none is left."""
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
    """Why nothing can be learnt from an utterance, or ""."""
    if not utterance.text:
        return "without text"
    if not utterance.duration <= max_seconds:
        return f"longer than --max-seconds {max_seconds:g}"
    if len(utterance.text) > CHARACTERS_PER_SECOND * utterance.duration:
        return f"with more than {CHARACTERS_PER_SECOND} characters a second"
    return ""


def first_hours(utterances: list[Utterance], hours: float | None, seed: int) -> list[Utterance]:
    """Whole sessions in an order drawn from `seed`, until they hold `hours` hours.
    Sessions are never cut."""
    if hours is None:
        return utterances
    sessions: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        sessions.setdefault(utterance.session, []).append(utterance)
    order = list(sessions)
    random.Random(seed).shuffle(order)
    chosen, seconds = [], 0.0
    for session in order:
        if seconds >= 3600 * hours:
            break
        chosen += sessions[session]
        seconds += sum(u.duration for u in sessions[session])
    return chosen


def session_order(utterances: list[Utterance]) -> dict[str, tuple[list[str], int]]:
    """utterance -> all of its session, in the order of their beginnings whatever their
    channel; its place there."""
    sessions: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        sessions.setdefault(utterance.session, []).append(utterance)
    orders = (
        [u.id for u in sorted(session, key=lambda u: u.offset)] for session in sessions.values()
    )
    return {name: (order, i) for order in orders for i, name in enumerate(order)}


def load_homophones(folder: str | Path) -> dict[str, str]:
    """{word: twin}, both ways, from the pairs in homophones.txt. Raises UserError where
    a line is no pair."""
    path = Path(folder) / "homophones.txt"
    lines = read_lines(path) if path.exists() else []
    pairs = [line.split() for line in lines if line.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(f"{path}: each line holds two words that sound alike.")
    return {a: b for pair in pairs for a, b in (pair, pair[::-1])}


# ------------------------------------------------------------------------------------------ LibriSpeech and the demo


def _build_demo(name: str, root: str, hours: float | None, scoring: bool) -> tuple[Path, list[str]]:
    """The folder of a demo world, built where it is missing, and its training subsets
    (scoring: one)."""
    folder = Path(os.path.expanduser(root)) / name
    hours = demo.SHARD_HOURS if scoring else hours or demo.HOURS
    return folder / "LibriSpeech", demo.build(folder, hours=hours, small=DEMO_WORLDS[name])


def _build_spontaneous(name: str, root: str) -> Path:
    return spontaneous.build(Path(os.path.expanduser(root)) / name, SPONTANEOUS[name])


def _find_librispeech(root: str, hours: float | None, download: bool, scoring: bool) -> Path:
    folder = Path(os.path.expanduser(root))
    folder = folder if folder.name == "LibriSpeech" else folder / "LibriSpeech"
    if download:
        enough = next((size for size in (100, 460) if hours and hours <= size), 960)
        train = (
            [] if scoring else LIBRISPEECH_TRAIN[hours if hours in LIBRISPEECH_TRAIN else enough]
        )
        download_librispeech(folder.parent, [*train, *LIBRISPEECH_SCORED])
    if not os.path.isdir(folder):
        raise UserError(
            f"there is no {folder}: --root names the folder that holds LibriSpeech/; or add --download."
        )
    return folder


def _subsets(folder: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern) if path.is_dir())


def _list_librispeech(folder: Path, train: list[str], scoring: bool) -> dict[str, Listing]:
    dev, tests = _subsets(folder, "dev-*"), _subsets(folder, "test-*")
    train = [] if scoring else train
    for pattern, names in (("train-*", train), ("dev-*", dev), ("test-*", tests)):
        if not names and (pattern == "test-*" or not scoring):
            raise UserError(
                f"{folder} lacks a {pattern} subset: add --download, or unpack it there."
            )
    sets = {"train": train, "dev": dev} | {name: [name] for name in tests}
    return {
        name: ([u for subset in subsets for u in list_subset(folder, subset)], {})
        for name, subsets in sets.items()
        if subsets
    }


def list_subset(folder: Path, subset: str) -> list[Utterance]:
    """One subset of LibriSpeech:
    <subset>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt beside the FLAC files.

    Durations are still 0. Raises UserError where the subset or all its transcripts are
    missing.
    """
    if not (folder / subset).is_dir():
        raise UserError(
            f"there is no {folder / subset}: add --download, or unpack LibriSpeech's {subset} there."
        )
    found = []
    for transcript in sorted((folder / subset).glob("*/*/*.trans.txt")):
        speaker, chapter = transcript.parts[-3:-1]
        for line in filter(str.strip, read_lines(transcript)):
            name, _, text = line.partition(" ")
            path, id = str(transcript.parent / f"{name}.flac"), printable(name)
            found.append(
                Utterance(
                    id, path, normalise(text), 0.0, speaker=speaker, session=f"{speaker}-{chapter}"
                )
            )
    if not found:
        raise UserError(
            f"{folder / subset} holds no */*/*.trans.txt: unpack LibriSpeech's {subset} there."
        )
    return found


# ------------------------------------------------------------------------- Multilingual LibriSpeech and its demo


def _find_mls(data: str, root: str, languages: tuple[str, ...]) -> tuple[Path, tuple[str, ...]]:
    """The folder that holds mls_<language>/, and the languages wanted of those there; a
    demo world is built."""
    folder = Path(os.path.expanduser(root))
    if data in DEMO_MLS_WORLDS:
        _check_languages(languages, MLS_LANGUAGES)
        folder /= data
        return folder, tuple(multilingual.build(folder, languages, small=DEMO_MLS_WORLDS[data]))
    there = [language for language in MLS_LANGUAGES if _mls_folder(folder, language).is_dir()]
    if not there:
        raise UserError(
            f"{printable(folder)} holds no mls_english/ or the like: --root names the folder that does."
        )
    _check_languages(languages, there)
    return folder, tuple(language for language in there if language in languages or not languages)


def _mls_folder(folder: Path, language: str) -> Path:
    """openslr.org has every language twice, as FLAC and, smaller, as Opus."""
    small = folder / f"mls_{language}_opus"
    return small if small.is_dir() else folder / f"mls_{language}"


def _list_mls(
    folder: Path, languages: tuple[str, ...], limited: list[str] | None, scoring: bool
) -> dict[str, Listing]:
    """train and dev of all languages in one, a test set for each. limited: patterns of
    lists within train, or None."""
    sets: dict[str, list[Utterance]] = {}
    splits = _mls_splits(folder, languages, scoring)
    for language in languages:
        for split in splits:
            subset = _mls_folder(folder, language) / split
            found = list_mls(subset, language)
            chosen = _limited(subset, found, limited) if split == "train" and limited else found
            sets.setdefault(f"test-{language}" if split == "test" else split, []).extend(chosen)
    return {name: (utterances, {}) for name, utterances in sets.items()}


def _mls_splits(folder: Path, languages: tuple[str, ...], scoring: bool) -> list[str]:
    """Those of train, dev, test that are to be read; scoring needs test, and takes dev
    if there.

    Raises UserError where a language lacks one of them.
    """
    splits = []
    for split in ("dev", "test") if scoring else ("train", "dev", "test"):
        lists = [_mls_folder(folder, name) / split / "transcripts.txt" for name in languages]
        lacking = [path for path in lists if not path.exists()]
        if scoring and split == "dev" and len(lacking) == len(lists):
            continue
        if lacking:
            raise UserError(
                f"there is no {printable(lacking[0])}: unpack {split} of that language there, or "
                "choose others with --languages."
            )
        splits.append(split)
    return splits


def _limited(subset: Path, utterances: list[Utterance], patterns: list[str]) -> list[Utterance]:
    """Those that MLS lists for limited supervision. Raises UserError where there is no
    list, or names others."""
    found = [
        path
        for pattern in patterns
        for path in sorted(subset.glob(f"limited_supervision/{pattern}/handles.txt"))
    ]
    lines = [line for path in found for line in read_lines(path)]
    names = {line.strip() for line in lines if line.strip()}
    chosen = [u for u in utterances if u.id in names]
    if not names or len(chosen) < len(names):
        raise UserError(f"{printable(subset)}/limited_supervision lists {len(names)} utterances, and transcripts.txt "
                        f"has {len(chosen)} of them: unpack MLS there again, or leave out --hours.")  # fmt: skip
    return chosen


def list_mls(subset: Path, language: str) -> list[Utterance]:
    """One of train, dev, test of a language: transcripts.txt beside
    audio/<speaker>/<book>/<id>.flac or .opus.

    Durations are still 0. Raises UserError where a line has another form.
    """
    found, paths = [], []
    for number, line in enumerate(read_lines(subset / "transcripts.txt"), start=1):
        name, _, text = line.partition("\t")
        if not line.strip():
            continue
        if name.count("_") != 2:
            raise UserError(f"{printable(subset)}/transcripts.txt, line {number} is no <speaker>_<book>_<number>, tab, "
                            f"text: {printable(line[:80])}")  # fmt: skip
        speaker, book, _ = name.split("_")
        who = {"speaker": speaker, "session": f"{speaker}_{book}", "language": language}
        paths.append(str(subset / "audio" / speaker / book / name))
        found.append(Utterance(printable(name), "", normalise(text), 0.0, **who))
    ending = _mls_ending(paths)
    return [replace(u, audio=path + ending) for u, path in zip(found, paths, strict=True)]


def _mls_ending(paths: list[str]) -> str:
    """The ending of the first of these files that is there; without any, the first of
    all."""
    for path in paths:
        for ending in MLS_ENDINGS:
            if os.path.exists(path + ending):
                return ending
    return MLS_ENDINGS[0]


# ------------------------------------------------------------------------------------------------ JSONL manifests


def _list_manifests(folder: Path, scoring: bool) -> dict[str, Listing]:
    wanted = "train.jsonl, dev.jsonl and test*.jsonl"
    if not os.path.isdir(folder):
        known = ", ".join([*DEMO_WORLDS, "librispeech", *SPONTANEOUS, *DEMO_MLS_WORLDS, "mls"])
        raise UserError(
            f"--data {printable(folder)}: no such folder, and not {known}: give a folder with {wanted}."
        )
    tests, dev = sorted(folder.glob("test*.jsonl")), folder / "dev.jsonl"
    if not tests:
        raise UserError(
            f"{folder} holds no test*.jsonl, and so no test set: a data folder needs {wanted}."
        )
    others = [path for path in [dev] if path.exists()] if scoring else [folder / "train.jsonl", dev]
    for path in others:
        if not path.exists():
            raise UserError(f"there is no {path}: a data folder needs {wanted}.")
    return {path.stem: list_manifest(path) for path in [*others, *tests]}


def list_manifest(path: str | Path) -> Listing:
    """The utterances of a manifest, see the module's docstring; durations that it does
    not give are 0.

    A line whose numbers make no sense is a bad utterance; any other mistake raises
    UserError with the line's number.
    """
    path, utterances, bad = Path(path), [], {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{printable(path)}, line {number}"
        try:
            # strict=False: a control character in a string is one, though JSON wants it escaped.
            entry = json.loads(line, strict=False)
            entry = {key: value for key, value in entry.items() if value is not None}
            audio, text = (
                str(path.parent / os.path.expanduser(entry["audio_filepath"])),
                normalise(entry["text"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{where} is no JSON object with the strings audio_filepath and text: "
                            f"{printable(line[:80])}") from None  # fmt: skip
        language = str(entry.get("lang", ""))
        if language and not LANGUAGE.fullmatch(language):
            raise UserError(
                f"{where} has the lang {printable(language[:40])}: that is no name, give it "
                "letters, digits, _ and - alone."
            )
        numbers = {key: entry[key] for key in ("duration", "offset", "channel") if key in entry}
        wrong = [
            f"{key} {printable(value)[:40]}"
            for key, value in numbers.items()
            if not _sensible(key, value)
        ]
        utterance = Utterance(
            id=printable(entry.get("id", f"{path.stem}-{number:06d}")),
            audio=audio,
            text=text,
            duration=0.0 if wrong else float(numbers.get("duration", 0.0)),
            offset=0.0 if wrong else float(numbers.get("offset", 0.0)),
            channel=int(numbers["channel"]) if "channel" in numbers and not wrong else None,
            speaker=str(entry.get("speaker", "")),
            session=str(entry.get("session", audio)),
            language=language,
        )
        utterances.append(utterance)
        if wrong:
            bad[utterance.id] = f"{where}: there cannot be {' and '.join(wrong)}"
    return utterances, bad


def _sensible(key: str, value: object) -> bool:
    """Whether a manifest's number is one of seconds, or of a channel; LARGEST is more
    than any file has."""
    number = type(value) in (int, float) and 0 <= value < LARGEST
    return number and (value > 0 or key != "duration") and (value == int(value) or key != "channel")
