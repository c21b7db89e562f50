"""Speech for the demo world: eSpeak NG through ctypes, a little room, a little noise, 16 kHz FLAC. Runs as a process:

    python -m common.demo.speech < job.json

    {"utterances": [{"path", "text", "frames", "voice", "pitch", "rate", "snr", "level", "reverberation", "noise"}]}
        writes one mono 16-bit FLAC per utterance, in order
    {"phonemes": [[voice, text], ...]}
        prints a JSON list with eSpeak NG's phonemes of each text

The synthesiser carries state from one sentence to the next, so the same sentence spoken twice differs. A fresh process
that speaks a fixed list in order always writes the same bytes: one process is started per hundred utterances. The
process is also the border to eSpeak NG's licence (GPL-3): nothing else in the project loads it. Starts in 0.2 s, for it
imports numpy and soundfile but no torch. Exit code 1 and one sentence on stderr where there is no eSpeak NG.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import sys

import numpy as np
import soundfile

RATE = 16000
MARGIN = 0.06  # seconds of quiet before and after the words
SLOWEST = 80  # eSpeak NG speaks no slower, in words per minute

# constants of espeak-ng/speak_lib.h
SYNCHRONOUS, DO_NOT_EXIT, UTF8 = 2, 0x8000, 1
SPEED, PITCH = 1, 3


class Synthesiser:
    """eSpeak NG as a function from text to samples; a class because the library calls back with pieces of audio."""

    def __init__(self):
        self.library, data = _load_library()
        self.rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, data, DO_NOT_EXIT)
        if self.rate <= 0:
            sys.exit(
                "eSpeak NG does not find its voices: pip install --force-reinstall espeakng-loader."
            )
        self.library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.library.espeak_TextToPhonemes.argtypes = [
            ctypes.POINTER(ctypes.c_char_p),
            ctypes.c_int,
            ctypes.c_int,
        ]
        self.pieces: list[np.ndarray] = []
        samples = ctypes.POINTER(ctypes.c_short)
        self.callback = ctypes.CFUNCTYPE(ctypes.c_int, samples, ctypes.c_int, ctypes.c_void_p)(
            self._collect
        )
        self.library.espeak_SetSynthCallback(self.callback)

    def _collect(self, samples, count, events) -> int:
        if samples and count:
            self.pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # go on

    def set_voice(self, voice: str) -> None:
        if self.library.espeak_SetVoiceByName(voice.encode()):
            sys.exit(
                f"eSpeak NG has no voice {voice}: install version 1.51 or later (pip install espeakng-loader)."
            )

    def speak(self, text: str, voice: str, pitch: int, rate: int) -> np.ndarray:
        """(N,) samples in [-1, 1] at RATE. text: lower case, for capitals may be spelled out."""
        self.pieces = []
        self.set_voice(voice)
        self.library.espeak_SetParameter(SPEED, rate, 0)
        self.library.espeak_SetParameter(PITCH, pitch, 0)
        data = text.encode() + b"\0"
        self.library.espeak_Synth(data, len(data), 0, 0, 0, UTF8, None, None)
        self.library.espeak_Synchronize()
        return resample(np.concatenate(self.pieces) / 32768, self.rate, RATE)

    def phonemes(self, voice: str, text: str) -> str:
        self.set_voice(voice)
        rest, clauses = ctypes.c_char_p(text.encode()), []
        while rest.value:  # one clause a call
            clauses.append(self.library.espeak_TextToPhonemes(ctypes.byref(rest), UTF8, 0).decode())
        return " ".join(clauses)


def _load_library() -> tuple[ctypes.CDLL, bytes | None]:
    """The library and the folder of its voices: from the package espeakng-loader, else from the system (None)."""
    try:
        import espeakng_loader

        os.chdir(
            espeakng_loader.get_data_path()
        )  # "." is short: eSpeak NG fails on paths of more than 160 characters
        return ctypes.CDLL(espeakng_loader.get_library_path()), b"."
    except (ImportError, OSError):
        name = ctypes.util.find_library("espeak-ng")
        if not name:
            sys.exit(
                "The demo world needs eSpeak NG: pip install espeakng-loader, or install your system's espeak-ng."
            )
        return ctypes.CDLL(name), None


def resample(x: np.ndarray, old: int, new: int) -> np.ndarray:
    """(N,) at `old` Hz -> (N * new / old,) at `new` Hz, by cutting the spectrum at the lower Nyquist frequency."""
    step = (
        64 * old // np.gcd(old, new)
    )  # multiples of old / gcd have whole lengths on both sides, of 64 a fast FFT
    x = np.pad(x, (0, -len(x) % step))
    length = len(x) * new // old
    return np.fft.irfft(np.fft.rfft(x)[: length // 2 + 1], length) * (length / len(x))


def frames(samples: int) -> int:
    """Encoder frames of 80 ms: 25-ms windows every 10 ms, then three convolutions of width 3 and stride 2."""
    count = (samples - RATE // 40) // (RATE // 100) + 1
    for _ in range(3):
        count = (count - 1) // 2
    return count


def synthesise(synthesiser: Synthesiser, utterance: dict) -> np.ndarray:
    """(N,) at the wished rate, or slower until there are enough frames (without, CTC has no path through it)."""
    rate = utterance["rate"]
    while True:
        speech = synthesiser.speak(utterance["text"], utterance["voice"], utterance["pitch"], rate)
        loud = np.flatnonzero(np.abs(speech) > 0.003)
        speech = np.pad(speech[loud[0] : loud[-1] + 1], round(MARGIN * RATE))
        if frames(len(speech)) >= utterance["frames"] or rate <= SLOWEST:
            return speech
        rate = max(SLOWEST, rate - 8)


def record(
    speech: np.ndarray, snr: float, level: float, reverberation: float, noise: int
) -> np.ndarray:
    """(N,) -> (N,): a room and its noise. snr: dB; level: RMS in dB; reverberation: seconds; noise: a seed."""
    rng = np.random.default_rng(noise)
    times = np.arange(round(reverberation * RATE)) / RATE
    echoes = rng.standard_normal(len(times)) * 10 ** (
        -3 * times / reverberation
    )  # amplitude: 60 dB are 10 ** -3
    echoes *= 0.3 / np.linalg.norm(echoes)  # 10 dB below the direct sound
    echoes[0] = 1
    size = -(-(len(speech) + len(echoes)) // 4096) * 4096  # no wrapping around, and a fast FFT
    wet = np.fft.irfft(np.fft.rfft(speech, size) * np.fft.rfft(echoes, size))[: len(speech)]

    if rng.random() < 0.5:  # white to pink to brown
        shape = np.maximum(np.fft.rfftfreq(size, 1 / RATE), 50) ** -rng.uniform(0, 1)
    else:  # a crowd far away: the spectrum of the speech itself, with phases of its own
        shape = np.abs(np.fft.rfft(wet, size))
    phases = np.exp(2j * np.pi * rng.random(len(shape)))
    background = np.fft.irfft(shape * phases)[: len(wet)]
    mixed = wet / _rms(wet) + background / _rms(background) * 10 ** (-snr / 20)
    mixed *= 10 ** (level / 20) / _rms(mixed)
    return mixed * min(1, 0.95 / np.abs(mixed).max())  # never clips


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


def main() -> None:
    job, synthesiser = json.load(sys.stdin), Synthesiser()
    for utterance in job.get("utterances", []):
        speech = synthesise(synthesiser, utterance)
        how = {key: utterance[key] for key in ("snr", "level", "reverberation", "noise")}
        soundfile.write(
            utterance["path"], record(speech, **how), RATE, subtype="PCM_16", format="FLAC"
        )
    if "phonemes" in job:
        json.dump(
            [synthesiser.phonemes(voice, text) for voice, text in job["phonemes"]], sys.stdout
        )


if __name__ == "__main__":
    main()
