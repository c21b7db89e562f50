"""Encoding audio while it comes in: from the samples of a microphone or a file to the encoder's frames.

    samples (n,) at any rate, any number at a time
        |   audio: what the resampler has not consumed                      held back until a block is complete
        v
    16 kHz  |   wave: what no complete feature frame has consumed           resampling as torchaudio's, a finite filter
        v
    (chunk x factor, 80) log-mel features: a block                          LogMel: no statistic of the whole file
        |   encoder: State of conformer_stream
        v
    (chunk, D) encoder frames

All audio goes through block by block, whatever portions it came in. So the portions cannot change the result, an hour
pushed at once needs no more memory for attention than a second, and the last block alone may be shorter. With a chunk
of 4 frames of 40 ms, block k (from 0) comes out as soon as 160 (k + 1) + 15 ms were heard, 15 because the last feature
frame looks 25 ms ahead of its start; another rate adds `delay` seconds, half the resampler's filter. What comes out is
what the encoder gives for the whole utterance with its chunk mask.

How exactly: resampled samples differ from `torchaudio.functional.resample` of the whole file by rounding (1e-7 in
float32; at 8 kHz usually by nothing). The logarithm of a band without any energy magnifies even that, to 1e-3 in
float32 for such a band of a frame; without resampling, and in float64, there is nothing to magnify.
"""

from __future__ import annotations

import copy
import math
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, repeat, zip_longest
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from common.conformer import Conformer
from common.conformer_stream import State, encode_piece, fresh_state, join_states, split_state
from common.ctc import BLANK
from common.features import HOP, N_MELS, SAMPLE_RATE, WINDOW, LogMel
from common.metrics import has_no_spaces_between_words
from common.running.audio import read_audio
from common.running.flags import RunConfig, UserError
from common.running.process import Place, note, stop_on_signals


class Stream(NamedTuple):
    """All that one stream remembers between two pushes: `torch.save` writes it, `torch.load` reads it again."""

    audio: Tensor  # (n,) at the input's rate; what the resampler still needs
    wave: Tensor  # (m,) at 16 kHz; what the next block begins with
    encoder: State  # of B = 1
    decoder: Any = ()  # what a decoder remembers (prediction network, partial words): its caller's, carried along


torch.serialization.add_safe_globals(
    [State, Stream]
)  # for torch.load, which reads known types only


class StreamingEncoder:
    """Features and (a copy of) the encoder of a streaming recogniser, for mono audio of `rate` Hz. Holds no stream.

    Raises ValueError if the encoder has full context, and UserError for a rate that only whole recordings can have
    (`audio.resample` takes the FFT of seconds then): 8, 11.025, 22.05, 44.1, 48 kHz and many others are fine.
    """

    def __init__(self, features: LogMel, encoder: Conformer, rate: int = SAMPLE_RATE):
        if not encoder.chunk:
            raise ValueError(
                "an encoder of full context (chunk 0) needs the whole utterance at once"
            )
        if max(rate, SAMPLE_RATE) // math.gcd(rate, SAMPLE_RATE) > 2000:
            raise UserError(
                f"A stream of {rate} Hz has no simple ratio to {SAMPLE_RATE} Hz: record it at {SAMPLE_RATE} Hz."
            )
        self.features, self.encoder = features, copy.deepcopy(encoder).eval()
        for module in self.encoder.modules():
            if isinstance(
                module, nn.Linear
            ):  # on a CPU, a few rows by a matrix that lies transposed: a tenth faster
                module.weight.data = module.weight.data.T.contiguous().T
        self.frames = encoder.chunk * encoder.factor  # features per block
        like = features.window
        # The resampler makes `made` samples from each `taken` ones, with a filter that sees `width` to both sides.
        self.taken, self.made, self.width, self.kernel = 1, 1, 0, like.new_ones(1, 1, 1)
        if rate != SAMPLE_RATE:
            resample = torchaudio.transforms.Resample(rate, SAMPLE_RATE, dtype=like.dtype)
            self.taken, self.made = rate // resample.gcd, SAMPLE_RATE // resample.gcd
            self.width, self.kernel = resample.width, resample.kernel.to(like)
        self.delay = self.width / rate  # seconds
        # What has to be heard beyond a block before it is complete, in seconds.
        self.ahead = (WINDOW - HOP) / SAMPLE_RATE + self.delay + (self.taken - 1) / rate

    def start(self) -> Stream:
        """A stream that has heard nothing; the resampler sees zeros before its beginning."""
        zeros = self.features.window.new_zeros
        return Stream(zeros(self.width), zeros(0), fresh_state(self.encoder, 1))

    @torch.inference_mode()
    def push(
        self, streams: Sequence[Stream], audio: Sequence[Tensor], end: bool = False
    ) -> tuple[list[Tensor], list[Stream]]:
        """Brings each stream its next samples (n,), in [-1, 1], any number of them; end: they are its last.

        Returns per stream the encoder frames (T, D) that are complete now, at the end all that are left, and the
        streams to go on with. Streams of one call are encoded as a batch. After its end a stream takes no more audio.
        """
        blocks, streams = zip(
            *(self._blocks(*pair, end) for pair in zip(streams, audio, strict=True)), strict=True
        )
        state = join_states([stream.encoder for stream in streams])
        nothing = self.features.window.new_zeros(0, N_MELS)
        found = [
            [self.encoder.norm.weight.new_zeros(0, len(self.encoder.norm.weight))] for _ in streams
        ]
        for features in zip_longest(*blocks, fillvalue=nothing):
            frames = torch.tensor([len(block) for block in features], device=nothing.device)
            padded = nn.utils.rnn.pad_sequence(features, batch_first=True)  # (B, F, 80)
            encoded, state = encode_piece(self.encoder, padded, frames, state)
            for outputs, output, length in zip(
                found, encoded.output, encoded.lengths.tolist(), strict=True
            ):
                outputs.append(output[:length])
        streams = [
            s._replace(encoder=part) for s, part in zip(streams, split_state(state), strict=True)
        ]
        return [torch.cat(outputs) for outputs in found], streams

    def _blocks(self, stream: Stream, audio: Tensor, end: bool) -> tuple[list[Tensor], Stream]:
        """The features (F, 80) of each block that is complete now, at the end also of what is left."""
        audio, wave, blocks = torch.cat([stream.audio, audio.to(stream.audio)]), stream.wave, []
        needed = (self.frames - 1) * HOP + WINDOW  # samples at 16 kHz
        while True:
            steps = max(
                0, -((len(wave) - needed) // self.made)
            )  # of the resampler, until the next block is complete
            if steps * self.taken + 2 * self.width > len(audio):
                break
            wave = torch.cat([wave, self._resample(audio[: steps * self.taken + 2 * self.width])])
            audio = audio[steps * self.taken :]
            blocks.append(self._features(wave[:needed]))
            wave = wave[self.frames * HOP :]
        if end:
            left = -((self.width - len(audio)) * self.made // self.taken)  # samples at 16 kHz
            wave = torch.cat(
                [wave, self._resample(F.pad(audio, (0, self.width + self.taken)))[:left]]
            )
            while len(wave) >= WINDOW:
                blocks.append(self._features(wave[:needed]))
                wave = wave[self.frames * HOP :]
            audio, wave = audio.new_zeros(self.width), wave[:0]
        return blocks, stream._replace(
            audio=audio.clone(), wave=wave.clone()
        )  # without what they were cut from

    def _resample(self, audio: Tensor) -> Tensor:
        """(n,) -> (made * ((n - 2 width) // taken),): whole steps of the filter."""
        if len(audio) < self.kernel.shape[2]:
            return audio[:0]
        return F.conv1d(audio[None, None], self.kernel, stride=self.taken)[0].T.flatten()

    def _features(self, wave: Tensor) -> Tensor:
        return self.features(wave[None], torch.tensor([len(wave)], device=wave.device))[0][0]


def dependencies(
    function: Callable[[Tensor], Tensor], x: Tensor, block: int, out_block: int
) -> Tensor:
    """Which outputs depend on which inputs, measured: one block of x after the other is disturbed.

    x (F, …) -> function(x) (T, …), cut into blocks of block and out_block frames. Returns (blocks of outputs, blocks of
    inputs), True where the output changes at all.
    """
    before, columns = function(x), []
    for start in range(0, len(x), block):
        disturbed = x.clone()
        disturbed[start : start + block] += 1.0
        changed = (function(disturbed) != before).flatten(1).any(1)  # (T,)
        columns.append(torch.stack([part.any() for part in changed.split(out_block)]))
    return torch.stack(columns, dim=1)


# ------------------------------------------------------------------------------------------------- words as they come


LONG_WORD = 30  # characters: of a longer word, what is there settles before its end [choice]
UNDECODABLE = (
    "\N{REPLACEMENT CHARACTER}"  # what a tokenizer of bytes writes for a part of a character
)


class WordPart(str):
    """Settled text of a word that goes on: what settles next stands right behind it, without a space."""


def greedy_words(
    recogniser: nn.Module, frames: Tensor, decoder: tuple
) -> tuple[list[str], str, tuple]:
    """Goes on with greedy decoding of a transducer: encoder frames (T, D) -> words settled now, partial word, decoder.

    decoder: () at the beginning; then W_p g, the prediction network's state, the labels of
    the word being written that have not settled, and how many of its characters have.

    A word settles when the next one begins. Where no spaces are written, that may never
    happen: there, all but the last piece settles as soon as that piece cannot change it,
    as a `WordPart`. So it is behind a character of a script without spaces between words,
    and in a word of any script that is longer than LONG_WORD. All that settles, followed by
    the partial word, is the text: with a space behind every word, and none behind a part.
    """
    predictor, joint, decode = recogniser.predictor, recogniser.joint, recogniser.tokenizer.decode
    if not decoder:
        output, state = predictor(torch.full((1, 1), BLANK, device=frames.device))
        decoder = joint.predict(output)[0, 0], state, [], 0
    predicted, state, labels, length = decoder
    settled = []
    for encoded in joint.encode(frames):
        for _ in range(10):  # labels per frame, as rnnt.greedy
            label = int(joint(encoded, predicted).argmax())
            if label == BLANK:
                break
            output, state = predictor(torch.full((1, 1), label, device=frames.device), state)
            predicted, before = joint.predict(output)[0, 0], labels
            labels = [*before, label]
            words = decode(labels).split()
            if len(words) > 1:
                settled += words[:-1]
                labels, length = [label], 0
            elif part := settled_part(decode, before, label, length):
                settled.append(WordPart(part))
                labels, length = [label], length + len(part)
    return settled, decode(labels).strip(), (predicted, state, labels, length)


def settled_part(
    decode: Callable[[list[int]], str], labels: list[int], label: int, length: int
) -> str:
    """What settles of the text of `labels` inside a word, now that `label` follows: all of it, or nothing.

    decode: a tokenizer's. length: how many characters of the word have settled before.
    """
    text, last = decode(labels), decode([label])
    is_final = decode([*labels, label]) == text + last and not text.endswith(UNDECODABLE)
    if not text or not last or not is_final:  # `last` may be a space, of which nothing is seen yet
        return ""
    needs_no_end = has_no_spaces_between_words(text[-1]) or length + len(text) > LONG_WORD
    return text if needs_no_end else ""


def columns_of(text: str) -> int:
    """How many columns of a terminal the text takes: two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def portions(config: RunConfig, first: float, seconds: float) -> Iterator[Tensor]:
    """--stream's audio (n,), so many seconds at first, and then at a time. Raises UserError."""
    if config.stream == "-":
        if sys.stdin is None:
            raise UserError(
                "--stream - reads standard input, which is closed: pipe audio into it, or name a file."
            )
        sizes = (2 * max(1, round(s * config.rate)) for s in chain([first], repeat(seconds)))
        pieces = iter(lambda: sys.stdin.buffer.read(next(sizes)), b"")
        return (
            torch.frombuffer(bytearray(b[: len(b) // 2 * 2]), dtype=torch.int16) / 32768
            for b in pieces
            if b[1:]
        )
    wave, n = read_audio(config.stream), max(1, round(first * SAMPLE_RATE))
    return chain([wave[:n]], wave[n:].split(max(1, round(seconds * SAMPLE_RATE))))


def until(stop: threading.Event, audio: Iterable[Tensor]) -> Iterator[Tensor]:
    """The portions up to the one during which the event was set."""
    for portion in audio:
        yield portion
        if stop.is_set():
            return


class Screen:
    """Settled words on stdout; on a terminal the word being written behind them, by way of stderr, and the time."""

    def __init__(self) -> None:
        self.shows = sys.stderr.isatty()
        # Lines end early enough for what is shown behind them: one that wraps could not be taken back.
        self.width = (
            max(20, shutil.get_terminal_size().columns - 50)
            if self.shows and sys.stdout.isatty()
            else 0
        )
        self.column = 0

    def write(self, settled: list[str], partial: str, seconds: float) -> None:
        for word in settled:
            if self.width and self.column and self.column + columns_of(word) > self.width:
                self.end_line("")
            text = word if isinstance(word, WordPart) else f"{word} "
            print(text, end="", flush=True)
            self.column += columns_of(text)
        if self.shows:  # from the cursor to the end of the line; then the cursor goes back
            while columns_of(partial) > 40:
                partial = partial[1:]
            print(
                f"\x1b7{partial} {1000 * seconds:4.0f} ms\x1b[K\x1b8",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def end_line(self, last: str) -> None:
        if self.shows:
            print("\x1b[K", end="", file=sys.stderr, flush=True)
        print(last, flush=True)
        self.column = 0


@torch.inference_mode()
def stream_words(recogniser: nn.Module, config: Any, place: Place) -> dict:
    """--stream: words on stdout as they settle, until the audio ends or Ctrl-C; times on stderr. Raises UserError."""
    if not recogniser.encoder.chunk:
        raise UserError("this model has full context and cannot stream: give a streaming student.")
    seconds = recogniser.encoder.chunk * recogniser.encoder.factor * HOP / SAMPLE_RATE  # of a block
    rate = config.rate if config.stream == "-" else SAMPLE_RATE
    encoder = StreamingEncoder(recogniser.frontend, recogniser.encoder, rate)
    audio, screen = (
        portions(config, seconds + encoder.ahead, seconds),
        Screen(),
    )  # a portion completes a block
    stream, heard, times = encoder.start(), 0, []
    with stop_on_signals() as stop:
        for portion in chain(until(stop, audio), [None]):  # None: the end
            started = time.perf_counter()
            samples = torch.zeros(0) if portion is None else portion
            (frames,), (stream,) = encoder.push(
                [stream], [samples.to(place.device)], end=portion is None
            )
            settled, partial, decoder = greedy_words(recogniser, frames, stream.decoder)
            stream, heard = stream._replace(decoder=decoder), heard + len(samples)
            times.append(time.perf_counter() - started)
            screen.write(settled, partial, times[-1])
    screen.end_line(partial)
    note(f"{heard / rate:.1f} s of audio in blocks of {1000 * seconds:.0f} ms: {1000 * fmean(times):.1f} ms per block, "
         f"at most {1000 * max(times):.1f}; real-time factor {sum(times) * rate / max(heard, 1):.3f}")  # fmt: skip
    return {}
