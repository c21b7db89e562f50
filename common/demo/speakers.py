"""Who speaks in the demo world, and under which conditions each utterance is recorded.

A speaker is a voice of eSpeak NG (accent + variant), a pitch and a pace, with a numeric id as in LibriSpeech. Everyone
in `train`, `dev-clean` and `test-clean` is one of 32 speakers with 8 voices. `test-other` has 12 speakers whose voices
(4, two of them with other accents) are never heard in training; they speak faster, in more noise.
"""

from __future__ import annotations

import random
from typing import NamedTuple


class Speaker(NamedTuple):
    id: int
    voice: str  # of eSpeak NG: accent+variant
    pitch: int  # 0-100, eSpeak NG's scale
    rate: int  # words per minute


# Voices with breath in them (f2, f3, f5, Alicia, …) are left out: eSpeak NG's breath differs from process to process.
VOICES = [
    "en-us",
    "en-us+m1",
    "en-us+m3",
    "en-us+m7",
    "en-us+Alex",
    "en-us+f1",
    "en-us+f4",
    "en-us+belinda",
]
NEW_VOICES = ["en-us-nyc+m2", "en-us+steph", "en-us+Annie", "en+Andy"]
ACCENTS = sorted({voice.split("+")[0] for voice in VOICES + NEW_VOICES})
PITCH_AND_RATE = [(36, 184), (46, 192), (56, 200), (66, 208)]  # four speakers with each voice

SPEAKERS = [
    Speaker(100 + 10 * i + j, voice, pitch, rate)
    for i, voice in enumerate(VOICES)
    for j, (pitch, rate) in enumerate(PITCH_AND_RATE)
]
NEW_SPEAKERS = [
    Speaker(500 + 10 * i + j, voice, pitch, rate + 10)
    for i, voice in enumerate(NEW_VOICES)
    for j, (pitch, rate) in enumerate(PITCH_AND_RATE[:3])
]


def assign(rng: random.Random, subset: str, conversations: int) -> list[Speaker]:
    """One speaker per conversation; everybody speaks once before anybody speaks twice."""
    speakers = NEW_SPEAKERS if subset == "test-other" else SPEAKERS
    rounds = conversations // len(speakers) + 1
    return [s for _ in range(rounds) for s in rng.sample(speakers, len(speakers))][:conversations]


def conditions(rng: random.Random, subset: str, speaker: Speaker) -> dict:
    """How one utterance is spoken and recorded, as `common.demo.speech` wants it."""
    quietest, noisiest = (25, 10) if subset == "test-other" else (35, 15)
    return {
        "voice": speaker.voice,
        "pitch": speaker.pitch + rng.randint(-3, 3),
        "rate": speaker.rate + rng.randint(-7, 7),  # words per minute
        "snr": round(rng.uniform(noisiest, quietest), 1),  # dB
        "level": round(rng.uniform(-30, -20), 1),  # RMS, dB below full scale
        "reverberation": round(
            rng.uniform(0.03, 0.15), 2
        ),  # seconds until the room is 60 dB quieter
        "noise": rng.getrandbits(32),  # seed of the noise and the room
    }
