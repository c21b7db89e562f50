"""How corpora lie on disk: one function per layout, and the table LAYOUTS of them.

    @layout("librispeech")                      # the name for --data
    def librispeech(wanted: Wanted) -> Listed:  # what is wanted -> what is there

A layout only lists the utterances that its files name. Then `corpora.load_corpus` does
for all layouts alike what follows: it looks for the audio, reads durations, and
refuses what makes no sense. So a new layout is one function here and its test.

LibriSpeech's layout, that of Multilingual LibriSpeech, and JSONL manifests in NeMo's
convention are read. The demo worlds are built on first use, and written in these three.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.running import mls
from common.running.downloads import download_librispeech
from common.running.manifests import MANIFESTS, list_manifests
from common.running.utterances import Listing, Utterance, check_languages
from common.text import normalise, printable, read_lines


class Wanted(NamedTuple):
    """What the command line asks for."""

    data: str  # --data: a name of LAYOUTS, or a folder of manifests
    root: Path  # --root
    hours: float | None  # --hours
    scoring: bool  # only test sets are needed
    languages: tuple[str, ...] = ()  # --languages; none: all


class Listed(NamedTuple):
    """What a corpus has."""

    folder: Path  # it may hold homophones.txt
    sets: dict[str, Listing]  # "train", "dev", and one or more test sets
    hours: float | None = None  # how much of "train" is still to be chosen; None: all of it
    languages: tuple[str, ...] = ()  # those that every set must have; none: all that any set has


Layout = Callable[[Wanted], Listed]
LAYOUTS: dict[str, Layout] = {}  # --data -> its layout; any other --data is a folder of manifests


def layout(*names: str) -> Callable[[Layout], Layout]:
    """Puts a function into LAYOUTS under these names."""

    def register(function: Layout) -> Layout:
        LAYOUTS.update(dict.fromkeys(names, function))
        return function

    return register


def list_corpus(wanted: Wanted) -> Listed:
    """What --data names has, by its layout. Raises UserError."""
    return LAYOUTS.get(wanted.data, manifests)(wanted)


# ============================================================================== LibriSpeech

# hours -> subsets of LibriSpeech (Panayotov et al., ICASSP 2015; openslr.org/12)
LIBRISPEECH_TRAIN = {
    100: ["train-clean-100"],
    360: ["train-clean-360"],
    460: ["train-clean-100", "train-clean-360"],
    960: ["train-clean-100", "train-clean-360", "train-other-500"],
}
LIBRISPEECH_SCORED = ["dev-clean", "dev-other", "test-clean", "test-other"]


@layout("demo", "demo-smoke")
def demo_english(wanted: Wanted) -> Listed:
    """The English demo world, with `hours` of training speech.

    Scoring needs none of it, and builds one subset.
    """
    from common.demo import english

    hours = english.SHARD_HOURS if wanted.scoring else wanted.hours or english.HOURS
    small = wanted.data == "demo-smoke"
    train = english.build(wanted.root / wanted.data, hours=hours, small=small)
    folder = wanted.root / wanted.data / "LibriSpeech"
    return Listed(folder, list_librispeech(folder, train, wanted.scoring))


@layout("librispeech")
def librispeech(wanted: Wanted) -> Listed:
    """ROOT/LibriSpeech, or ROOT itself if that is its name.

    100, 360, 460 and 960 hours are the subsets of the literature. Any other number of
    hours is chosen from all subsets that are there.
    """
    hours = wanted.hours
    folder = librispeech_folder(wanted.root)
    if not os.path.isdir(folder):
        what = f"there is no {folder}: --root names the folder that holds LibriSpeech/"
        raise UserError(f"{what}; or add --download.")
    if hours in LIBRISPEECH_TRAIN:
        return Listed(folder, list_librispeech(folder, LIBRISPEECH_TRAIN[hours], wanted.scoring))
    sets = list_librispeech(folder, _subsets(folder, "train-*"), wanted.scoring)
    return Listed(folder, sets, hours)


def librispeech_folder(root: Path) -> Path:
    return root if root.name == "LibriSpeech" else root / "LibriSpeech"


def download(wanted: Wanted) -> None:
    """Fetches the subsets of LibriSpeech that are wanted and missing. Raises UserError.

    It does nothing for other corpora.
    """
    if wanted.data != "librispeech":
        return
    hours = wanted.hours
    enough = next((size for size in (100, 460) if hours and hours <= size), 960)
    train = LIBRISPEECH_TRAIN[hours if hours in LIBRISPEECH_TRAIN else enough]
    needed = LIBRISPEECH_SCORED if wanted.scoring else [*train, *LIBRISPEECH_SCORED]
    download_librispeech(librispeech_folder(wanted.root).parent, needed)


def _subsets(folder: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern) if path.is_dir())


def list_librispeech(folder: Path, train: list[str], scoring: bool) -> dict[str, Listing]:
    """The subsets named for training, all dev subsets in one set, each test subset."""
    train = [] if scoring else train
    dev = _subsets(folder, "dev-*")
    tests = _subsets(folder, "test-*")
    for pattern, names in (("train-*", train), ("dev-*", dev), ("test-*", tests)):
        if not names and (pattern == "test-*" or not scoring):
            what = f"{folder} lacks a {pattern} subset"
            raise UserError(f"{what}: add --download, or unpack it there.")
    sets = {}
    for name, subsets in {"train": train, "dev": dev, **{test: [test] for test in tests}}.items():
        if subsets:
            utterances = [u for subset in subsets for u in list_subset(folder, subset)]
            sets[name] = Listing(utterances)
    return sets


def list_subset(folder: Path, subset: str) -> list[Utterance]:
    """One subset of LibriSpeech. Durations are still 0.

    <speaker>/<chapter>/<speaker>-<chapter>.trans.txt lies beside the FLAC files. Raises
    UserError if the subset or all its transcripts are missing.
    """
    if not (folder / subset).is_dir():
        what = f"there is no {folder / subset}"
        raise UserError(f"{what}: add --download, or unpack LibriSpeech's {subset} there.")
    found = []
    for transcript in sorted((folder / subset).glob("*/*/*.trans.txt")):
        speaker, chapter = transcript.parts[-3:-1]
        for line in filter(str.strip, read_lines(transcript)):
            name, _, text = line.partition(" ")
            utterance = Utterance(
                id=printable(name),
                audio=str(transcript.parent / f"{name}.flac"),
                text=normalise(text),
                duration=0.0,
                speaker=speaker,
                session=f"{speaker}-{chapter}",
            )
            found.append(utterance)
    if not found:
        what = f"{folder / subset} holds no */*/*.trans.txt"
        raise UserError(f"{what}: unpack LibriSpeech's {subset} there.")
    return found


# =============================================================== Multilingual LibriSpeech


@layout("demo-mls", "demo-mls-smoke")
def demo_mls(wanted: Wanted) -> Listed:
    """The multilingual demo world."""
    from common.demo import multilingual

    check_languages(wanted.languages, mls.LANGUAGES)
    folder = wanted.root / wanted.data
    small = wanted.data == "demo-mls-smoke"
    languages = tuple(multilingual.build(folder, wanted.languages, small=small))
    return Listed(
        folder, mls.list_sets(folder, languages, None, wanted.scoring), wanted.hours, languages
    )


@layout("demo-mls-nonsense", "demo-mls-nonsense-smoke")
def demo_mls_nonsense(wanted: Wanted) -> Listed:
    """Test sets whose sentences make no sense, to score runs of demo-mls on: there is
    nothing to train on."""
    from common.demo import multilingual

    check_languages(wanted.languages, mls.LANGUAGES)
    folder = wanted.root / wanted.data
    small = wanted.data.endswith("-smoke")
    languages = tuple(multilingual.build_nonsense(folder, wanted.languages, small=small))
    return Listed(folder, mls.list_sets(folder, languages, None, wanted.scoring))


@layout("mls")
def multilingual_librispeech(wanted: Wanted) -> Listed:
    """ROOT/mls_<language>/ of some or all languages.

    1, 9 and 10 hours of each language are its own lists for limited supervision. Any
    other number of hours is chosen from all that is there.
    """
    there = [x for x in mls.LANGUAGES if mls.folder_of(wanted.root, x).is_dir()]
    if not there:
        what = f"{printable(wanted.root)} holds no mls_english/ or the like"
        raise UserError(f"{what}: --root names the folder that does.")
    check_languages(wanted.languages, there)
    languages = tuple(x for x in there if x in wanted.languages or not wanted.languages)
    limited = mls.LIMITED.get(wanted.hours)
    sets = mls.list_sets(wanted.root, languages, limited, wanted.scoring)
    return Listed(wanted.root, sets, None if limited else wanted.hours, languages)


# ============================================================================== manifests


@layout("demo-talk", "demo-talk-smoke")
def demo_talk(wanted: Wanted) -> Listed:
    """Another domain than the English demo world's: how people talk."""
    from common.demo import spontaneous

    small = wanted.data.endswith("-smoke")
    folder = spontaneous.build(wanted.root / wanted.data, small)
    return Listed(folder, list_manifests(folder, wanted.scoring), wanted.hours)


# --data -> the share of the cue words that are new
JARGON = {
    "demo-jargon": 1.0,
    "demo-jargon-30": 0.3,
    "demo-jargon-10": 0.1,
    "demo-jargon-smoke": 1.0,
}


@layout(*JARGON)
def demo_jargon(wanted: Wanted) -> Listed:
    """A domain whose words the English demo world has never met."""
    from common.demo import jargon

    small = wanted.data.endswith("-smoke")
    folder = jargon.build(wanted.root / wanted.data, small, JARGON[wanted.data])
    return Listed(folder, list_manifests(folder, wanted.scoring), wanted.hours)


def manifests(wanted: Wanted) -> Listed:
    """A folder with train.jsonl, dev.jsonl and one or more test*.jsonl.

    This is the layout of every --data that LAYOUTS does not name.
    """
    folder = Path(os.path.expanduser(wanted.data))
    if not os.path.isdir(folder):
        what = f"--data {printable(folder)}: no such folder, and not {', '.join(LAYOUTS)}"
        raise UserError(f"{what}: give a folder with {MANIFESTS}.")
    return Listed(folder, list_manifests(folder, wanted.scoring), wanted.hours)
