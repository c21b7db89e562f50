"""The lists of Multilingual LibriSpeech (openslr.org/94).

    ROOT/mls_<language>/<split>/transcripts.txt
    ROOT/mls_<language>/<split>/audio/<speaker>/<book>/<id>.flac (or .opus)
    ROOT/mls_<language>/train/limited_supervision/<list>/handles.txt

The splits are train, dev and test. Pratap et al., Interspeech 2020.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from common.errors import UserError
from common.running.utterances import Listing, Utterance
from common.text import normalise, printable, read_lines

# From the most training audio to the least.
LANGUAGES = (
    "english",
    "german",
    "dutch",
    "french",
    "spanish",
    "italian",
    "portuguese",
    "polish",
)
# hours of each language -> its lists for limited supervision; 1hr/0 to 1hr/5 have 10 minutes each
LIMITED = {1: ["1hr/*"], 9: ["9hr"], 10: ["1hr/*", "9hr"]}
ENDINGS = (".flac", ".opus")


def folder_of(root: Path, language: str) -> Path:
    """openslr.org has every language twice, as FLAC and, smaller, as Opus."""
    small = root / f"mls_{language}_opus"
    return small if small.is_dir() else root / f"mls_{language}"


def list_sets(
    root: Path, languages: tuple[str, ...], limited: list[str] | None, scoring: bool
) -> dict[str, Listing]:
    """train and dev of all languages in one set each, and a test set for each language.

    limited: patterns of the lists within train to which it is limited, or None.
    """
    sets: dict[str, Listing] = {}
    splits = _splits(root, languages, scoring)
    for language in languages:
        for split in splits:
            subset = folder_of(root, language) / split
            found = list_subset(subset, language)
            if split == "train" and limited:
                found = _limited(subset, found, limited)
            name = f"test-{language}" if split == "test" else split
            sets.setdefault(name, Listing()).utterances.extend(found)
    return sets


def _splits(root: Path, languages: tuple[str, ...], scoring: bool) -> list[str]:
    """The splits that are read. Scoring needs test, and takes dev if it is there.

    Raises UserError if a language lacks one of them.
    """
    splits = []
    for split in ("dev", "test") if scoring else ("train", "dev", "test"):
        lists = [folder_of(root, name) / split / "transcripts.txt" for name in languages]
        lacking = [path for path in lists if not path.exists()]
        if scoring and split == "dev" and len(lacking) == len(lists):
            continue
        if lacking:
            what = f"there is no {printable(lacking[0])}: unpack {split} of that language there"
            raise UserError(f"{what}, or choose others with --languages.")
        splits.append(split)
    return splits


def _limited(subset: Path, utterances: list[Utterance], patterns: list[str]) -> list[Utterance]:
    """The utterances that the lists for limited supervision name.

    Raises UserError if there is no list, or if it names other utterances.
    """
    names = set()
    for pattern in patterns:
        for path in subset.glob(f"limited_supervision/{pattern}/handles.txt"):
            names |= {line.strip() for line in read_lines(path) if line.strip()}
    chosen = [u for u in utterances if u.id in names]
    if not names or len(chosen) < len(names):
        what = f"{printable(subset)}/limited_supervision lists {len(names)} utterances"
        there = f"transcripts.txt has {len(chosen)} of them"
        raise UserError(f"{what}, and {there}: unpack MLS there again, or leave out --hours.")
    return chosen


def list_subset(subset: Path, language: str) -> list[Utterance]:
    """One of train, dev and test of a language. Durations are still 0.

    transcripts.txt lies beside audio/<speaker>/<book>/<id>.flac or .opus. Raises
    UserError if a line has another form.
    """
    found = []
    for number, line in enumerate(read_lines(subset / "transcripts.txt"), start=1):
        name, _, text = line.partition("\t")
        if not line.strip():
            continue
        if name.count("_") != 2:
            where = f"{printable(subset)}/transcripts.txt, line {number}"
            form = "is no <speaker>_<book>_<number>, tab, text"
            raise UserError(f"{where} {form}: {printable(line[:80])}")
        speaker, book, _ = name.split("_")
        utterance = Utterance(
            id=printable(name),
            audio=str(subset / "audio" / speaker / book / name),  # the ending comes below
            text=normalise(text),
            duration=0.0,
            speaker=speaker,
            session=f"{speaker}_{book}",
            language=language,
        )
        found.append(utterance)
    ending = _ending([u.audio for u in found])
    return [replace(u, audio=u.audio + ending) for u in found]


def _ending(paths: list[str]) -> str:
    """The ending of the first of these files that exists; .flac if none does."""
    for path in paths:
        for ending in ENDINGS:
            if os.path.exists(path + ending):
                return ending
    return ENDINGS[0]
