"""The files hyp_<split>.txt, for people, and hyp_<split>.tsv, for programs, of a test
set that was scored.

A .tsv has a header, and per utterance its id, reference and hypothesis; behind them
stands where its audio is, so that one can listen to it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from common import metrics
from common.files import write_atomically
from common.running.corpora import Utterance
from common.text import printable, read_lines

COLUMNS = ("id", "reference", "hypothesis", "audio", "offset", "duration", "channel")


class Scored(NamedTuple):
    """An utterance of a test set, what was recognised, and where its audio is."""

    id: str
    reference: str
    hypothesis: str
    audio: str = ""  # a path inside --root, or any other path; "": not known
    offset: float = 0.0  # seconds from the start of the file
    duration: float | None = None  # seconds; None: to the end of the file
    channel: int | None = None  # None: the mean of all channels


def write_hypotheses(
    folder: Path, split: str, utterances: list[Utterance], found: dict[str, str], root: str
) -> None:
    """Writes both files of the utterances that were recognised; prints the first three
    errors."""
    pairs: list[str] = []
    rows: list[str] = []
    wrong: list[str] = []
    for u in utterances:
        if u.id not in found:
            continue
        name = printable(u.id)
        pair = metrics.side_by_side(u.text, found[u.id])
        pairs.append(f"{name}\n{pair}\n")
        if found[u.id] != u.text:
            wrong.append(pair)
        channel = "" if u.channel is None else u.channel
        place = (printable(path_inside(root, u.audio)), u.offset, u.duration, channel)
        rows.append("\t".join(map(str, (name, u.text, found[u.id], *place))) + "\n")
    write_atomically(folder / f"hyp_{split}.txt", "\n".join(pairs))
    write_atomically(folder / f"hyp_{split}.tsv", "\t".join(COLUMNS) + "\n" + "".join(rows))
    print(*wrong[:3], sep="\n", flush=True)


def path_inside(root: str, path: str) -> str:
    """The path of a file from the folder `root` on; where it lies elsewhere, its whole
    path."""
    folder = os.path.abspath(os.path.expanduser(root))
    whole = os.path.abspath(path)
    return os.path.relpath(whole, folder) if whole.startswith(folder + os.sep) else whole


def read_hypotheses(path: Path) -> list[list[str]]:
    """[[id, reference, hypothesis], ...] of a hyp_<split>.tsv."""
    return [line.split("\t")[:3] for line in read_lines(path)[1:] if line]


def read_scored(path: Path) -> list[Scored]:
    """The utterances of a hyp_<split>.tsv. A file of an older version has no audio."""
    found = []
    for line in read_lines(path)[1:]:
        cells = line.split("\t")
        if len(cells) == len(COLUMNS):
            *texts, audio, offset, duration, channel = cells
            number = int(channel) if channel else None
            found.append(Scored(*texts, audio, float(offset), float(duration) or None, number))
        elif len(cells) >= 3:
            found.append(Scored(*cells[:3]))
    return found
