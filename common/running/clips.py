"""The audio of a few sentences as text that stands in a page: data URIs.

FLAC where all fit, since every browser plays it; else Ogg Opus, which is a fifth of it.
"""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import NamedTuple

import soundfile
from torch import Tensor

from common.features import SAMPLE_RATE
from common.running.audio import AudioError, read_audio
from common.running.hypotheses import Scored

BUDGET = 8_000_000  # characters of all clips of a page together
LONGEST = 60.0  # seconds: of a longer recording the page has the beginning [choice]
FORMATS = {"flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "OPUS")}


class Clip(NamedTuple):
    uri: str  # "" where there is none
    remark: str  # why there is none, or that it is the beginning only


def clips_of(utterances: list[Scored], root: str) -> list[Clip]:
    """A clip per utterance, at most BUDGET characters in all. root: see `path_of`."""
    waves: list[Tensor | None] = []
    remarks = []
    for utterance in utterances:
        wave, remark = _read(utterance, root)
        waves.append(wave)
        remarks.append(remark)
    for name in FORMATS:
        uris = ["" if wave is None else _encode(wave, name) for wave in waves]
        if sum(map(len, uris)) <= BUDGET:
            break
    clips, left = [], BUDGET
    for uri, remark in zip(uris, remarks, strict=True):
        if len(uri) > left:
            clips.append(Clip("", "The page has no room for this audio."))
            continue
        left -= len(uri)
        clips.append(Clip(uri, remark))
    return clips


def path_of(utterance: Scored, root: str) -> Path:
    """Where the audio is: inside `root`, or at the path that the corpus gave."""
    return Path(os.path.expanduser(root)) / utterance.audio


def _read(utterance: Scored, root: str) -> tuple[Tensor | None, str]:
    """The wave, at 16 kHz, and a remark."""
    if not utterance.audio:
        return None, "Its file of hypotheses does not say where the audio is."
    is_long = utterance.duration is not None and utterance.duration > LONGEST
    seconds = LONGEST if is_long else utterance.duration
    path = path_of(utterance, root)
    try:
        wave = read_audio(path, utterance.offset, seconds, utterance.channel, lambda _: None)
    except AudioError:
        return None, "Its audio cannot be read any more."
    return wave, f"The first {LONGEST:g} seconds." if is_long else ""


def _encode(wave: Tensor, name: str) -> str:
    container, coding = FORMATS[name]
    file = io.BytesIO()
    soundfile.write(file, wave.numpy(), SAMPLE_RATE, format=container, subtype=coding)
    return f"data:audio/{name};base64,{base64.b64encode(file.getvalue()).decode()}"
