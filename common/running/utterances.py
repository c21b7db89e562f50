"""Utterances, and the lists of them that a corpus consists of.

A layout (layouts.py) lists the utterances of a corpus, `corpora.load_corpus` checks
them, and everything else reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from common.errors import UserError
from common.text import printable

LANGUAGE = re.compile(r"[\w-]{1,40}")  # a language's name also names folders: it is never a path
NAME_THEM = 'Every line of a manifest needs its language here, as "lang": "german".'


@dataclass(frozen=True)
class Utterance:
    """A stretch of an audio file and its words (normalised)."""

    id: str
    audio: str  # path of the file
    text: str
    duration: float  # seconds; 0 in a listing: the file's header has not been read yet
    offset: float = 0.0  # seconds from the start of the file
    channel: int | None = None  # None: the mean of all channels
    speaker: str = ""
    session: str = ""  # chapter or conversation; its utterances are listed in spoken order
    language: str = ""


@dataclass(frozen=True)
class Listing:
    """What a corpus lists for one set, before anybody has looked at its files."""

    utterances: list[Utterance] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)  # utterance -> what is wrong with its line


def languages_of(utterances: list[Utterance]) -> list[str]:
    """The languages of utterances, in alphabetical order.

    Raises UserError if an utterance has none; the message says what a manifest needs.
    """
    nameless = [u for u in utterances if not u.language]
    if nameless:
        count = f"{len(nameless)} of {len(utterances)} utterances"
        raise UserError(f"{count} have no language, the first is {nameless[0].id}. {NAME_THEM}")
    return sorted({u.language for u in utterances})


def check_languages(wanted: Iterable[str], known: Iterable[str]) -> None:
    """Raises UserError if one of the languages on the command line is not known."""
    unknown = [language for language in wanted if language not in known]
    if unknown:
        there = ", ".join(sorted(known)) or f"none that are named. {NAME_THEM}"
        raise UserError(f"--languages {printable(unknown[0])}: the corpus has {there.rstrip('.')}.")


def session_order(utterances: list[Utterance]) -> dict[str, tuple[list[str], int]]:
    """{utterance: (all utterances of its session, its place among them)}.

    They are ordered by when they begin, whatever their channel.
    """
    places = {}
    for session in by_session(utterances).values():
        order = [u.id for u in sorted(session, key=lambda u: u.offset)]
        for place, name in enumerate(order):
            places[name] = order, place
    return places


def by_session(utterances: list[Utterance]) -> dict[str, list[Utterance]]:
    """The utterances of each session, in the order of the first ones."""
    sessions: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        sessions.setdefault(utterance.session, []).append(utterance)
    return sessions
