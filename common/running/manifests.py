"""JSONL manifests in NeMo's convention: a JSON object per line.

    {"audio_filepath": "a.flac", "text": "hello"}

A line may also have `duration` and `offset` (in seconds), `channel`, `id`, `speaker`,
`session` and `lang`. `audio_filepath` is relative to the manifest.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.running.utterances import LANGUAGE, Listing, Utterance
from common.text import normalise, printable, read_lines

LARGEST = 1e9  # seconds of a duration or an offset, and channels: no file has more
MANIFESTS = "train.jsonl, dev.jsonl and test*.jsonl"


def list_manifests(folder: Path, scoring: bool) -> dict[str, Listing]:
    """{name of a manifest: its listing}. Scoring needs no train, and no dev."""
    tests = sorted(folder.glob("test*.jsonl"))
    if not tests:
        what = f"{folder} holds no test*.jsonl, and so no test set"
        raise UserError(f"{what}: a data folder needs {MANIFESTS}.")
    dev = folder / "dev.jsonl"
    others = [folder / "train.jsonl", dev]
    if scoring:
        others = [dev] if dev.exists() else []
    for path in others:
        if not path.exists():
            raise UserError(f"there is no {path}: a data folder needs {MANIFESTS}.")
    return {path.stem: list_manifest(path) for path in [*others, *tests]}


def list_manifest(path: str | Path) -> Listing:
    """The utterances of a manifest. A duration that it does not give is 0.

    A line whose numbers make no sense is a bad utterance. Any other mistake raises
    UserError with the line's number.
    """
    path = Path(path)
    listing = Listing()
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{printable(path)}, line {number}"
        entry = _entry_of(line, where)
        wrong = []
        for key in ("duration", "offset", "channel"):
            if key in entry and not _makes_sense(key, entry[key]):
                wrong.append(f"{key} {printable(entry[key])[:40]}")
        numbers = {} if wrong else entry
        audio = str(path.parent / entry["audio_filepath"])
        utterance = Utterance(
            id=printable(entry.get("id", f"{path.stem}-{number:06d}")),
            audio=audio,
            text=entry["text"],
            duration=float(numbers.get("duration", 0.0)),
            offset=float(numbers.get("offset", 0.0)),
            channel=int(numbers["channel"]) if "channel" in numbers else None,
            speaker=str(entry.get("speaker", "")),
            session=str(entry.get("session", audio)),
            language=str(entry.get("lang", "")),
        )
        listing.utterances.append(utterance)
        if wrong:
            listing.bad[utterance.id] = f"{where}: there cannot be {' and '.join(wrong)}"
    return listing


def _entry_of(line: str, where: str) -> dict[str, Any]:
    """The JSON object in a line, without nulls, with a normalised text.

    Raises UserError if it is no object, or lacks what it needs.
    """
    try:
        # strict=False: a control character in a string is one, though JSON wants it escaped.
        entry = json.loads(line, strict=False)
        entry = {key: value for key, value in entry.items() if value is not None}
        entry["audio_filepath"] = os.path.expanduser(entry["audio_filepath"])
        entry["text"] = normalise(entry["text"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        what = f"{where} is no JSON object with the strings audio_filepath and text"
        raise UserError(f"{what}: {printable(line[:80])}") from None
    language = str(entry.get("lang", ""))
    if language and not LANGUAGE.fullmatch(language):
        what = f"{where} has the lang {printable(language[:40])}: that is no name"
        raise UserError(f"{what}, give it letters, digits, _ and - alone.")
    return entry


def _makes_sense(key: str, value: object) -> bool:
    """Whether a manifest's number can be a duration, an offset or a channel."""
    number = type(value) in (int, float) and 0 <= value < LARGEST
    positive = number and (value > 0 or key != "duration")
    return positive and (value == int(value) or key != "channel")
