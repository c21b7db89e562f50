"""`transcribe.py --stream`: words on standard output while the audio comes in."""

from __future__ import annotations

import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError, note
from common.features import HOP, SAMPLE_RATE
from common.running.audio import read_audio
from common.running.process import Place, stop_on_signals
from common.streaming import StreamingEncoder, WordPart, greedy_words


def columns_of(text: str) -> int:
    """How many columns of a terminal the text takes: two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def portions(config: Any, first: float, seconds: float) -> Iterator[Tensor]:
    """The audio that --stream names, (n,): `first` seconds, then `seconds` at a time.

    Raises UserError.
    """
    if config.stream == "-":
        return from_standard_input(config.rate, first, seconds)
    wave = read_audio(config.stream)
    n = max(1, round(first * SAMPLE_RATE))
    return chain([wave[:n]], wave[n:].split(max(1, round(seconds * SAMPLE_RATE))))


def from_standard_input(rate: int, first: float, seconds: float) -> Iterator[Tensor]:
    """16-bit samples of one channel. Raises UserError where it is closed."""
    if sys.stdin is None:
        what = "--stream - reads standard input, which is closed"
        raise UserError(f"{what}: pipe audio into it, or name a file.")
    return _samples(rate, first, seconds)


def _samples(rate: int, first: float, seconds: float) -> Iterator[Tensor]:
    for duration in chain([first], repeat(seconds)):
        size = 2 * max(1, round(duration * rate))  # bytes
        read = sys.stdin.buffer.read(size)
        if not read:
            return
        whole = bytearray(read[: len(read) // 2 * 2])
        if whole:
            yield torch.frombuffer(whole, dtype=torch.int16) / 32768


def until(stop: threading.Event, audio: Iterable[Tensor]) -> Iterator[Tensor]:
    """The portions up to the one during which the event was set."""
    for portion in audio:
        yield portion
        if stop.is_set():
            return


class Screen:
    """Settled words on stdout; on a terminal also the word being written and the time,
    behind them, on stderr."""

    def __init__(self) -> None:
        self.shows = sys.stderr.isatty()
        self.width = 0
        if self.shows and sys.stdout.isatty():
            # Room for what is shown behind the words: a line that wraps could not be taken back.
            self.width = max(20, shutil.get_terminal_size().columns - 50)
        self.column = 0

    def write(self, settled: list[str], partial: str, seconds: float) -> None:
        for word in settled:
            if self.width and self.column and self.column + columns_of(word) > self.width:
                self.end_line("")
            text = word if isinstance(word, WordPart) else f"{word} "
            print(text, end="", flush=True)
            self.column += columns_of(text)
        if self.shows:
            self._show(partial, seconds)

    def _show(self, partial: str, seconds: float) -> None:
        """From the cursor to the end of the line; then the cursor goes back."""
        while columns_of(partial) > 40:
            partial = partial[1:]
        shown = f"\x1b7{partial} {1000 * seconds:4.0f} ms\x1b[K\x1b8"
        print(shown, end="", file=sys.stderr, flush=True)

    def end_line(self, last: str) -> None:
        if self.shows:
            print("\x1b[K", end="", file=sys.stderr, flush=True)
        print(last, flush=True)
        self.column = 0


@torch.inference_mode()
def stream_words(recogniser: nn.Module, config: Any, place: Place) -> None:
    """Writes words as they settle, until the audio ends or Ctrl-C; times on stderr.

    config: with `stream` and `rate`. Raises UserError.
    """
    if not recogniser.encoder.chunk:
        raise UserError("this model has full context and cannot stream: give a streaming student.")
    seconds = recogniser.encoder.chunk * recogniser.encoder.factor * HOP / SAMPLE_RATE  # of a block
    rate = config.rate if config.stream == "-" else SAMPLE_RATE
    encoder = StreamingEncoder(recogniser.frontend, recogniser.encoder, rate)
    audio = portions(config, seconds + encoder.ahead, seconds)  # each completes a block
    screen = Screen()
    stream = encoder.start()
    samples = 0
    times = []
    with stop_on_signals() as stop:
        for portion in chain(until(stop, audio), [None]):  # None: the end
            started = time.perf_counter()
            new = torch.zeros(0) if portion is None else portion
            (frames,), (stream,) = encoder.push([stream], [new.to(place.device)], portion is None)
            settled, partial, decoder = greedy_words(recogniser, frames, stream.decoder)
            stream = stream._replace(decoder=decoder)
            samples += len(new)
            times.append(time.perf_counter() - started)
            screen.write(settled, partial, times[-1])
    screen.end_line(partial)
    read = f"{samples / rate:.1f} s of audio in blocks of {1000 * seconds:.0f} ms"
    speed = f"{1000 * fmean(times):.1f} ms per block, at most {1000 * max(times):.1f}"
    note(f"{read}: {speed}; real-time factor {sum(times) * rate / max(samples, 1):.3f}")
