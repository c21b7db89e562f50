"""Encoding and decoding audio while it comes in: samples -> encoder frames -> words.

    samples (n,) at any rate, any number at a time
        |   audio: what the resampler has not consumed yet
        v
    16 kHz  |   wave: what no complete feature frame has consumed yet
        v
    (chunk x factor, 80) log-mel features: a block
        |   encoder: the State of conformer_stream
        v
    (chunk, D) encoder frames --> `greedy_words`

All audio goes through block by block, whatever portions it came in. So the portions
cannot change the result, an hour pushed at once needs no more memory for attention than
a second, and only the last block may be shorter. With chunks of 4 frames of 40 ms,
block k (from 0) is complete as soon as 160 (k + 1) + 15 ms were read: the last feature
frame looks 25 ms ahead of its start. Another rate adds `delay` seconds, half the
resampler's filter. The frames are those that the encoder gives for the whole utterance
with its chunk mask.

Resampled samples differ from `torchaudio.functional.resample` of the whole file by
rounding (1e-7 in float32; at 8 kHz usually by nothing). The logarithm of a band without
any energy magnifies even that, to 1e-3 in float32 for such a band of a frame. Without
resampling, and in float64, there is nothing to magnify.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from common.conformer import Conformer
from common.conformer_stream import State, encode_piece, fresh_state, join_states, split_state
from common.ctc import BLANK
from common.errors import UserError
from common.features import HOP, N_MELS, SAMPLE_RATE, WINDOW, LogMel
from common.metrics import has_no_spaces_between_words

# ==================================================================================== encoding


class Stream(NamedTuple):
    """All that one stream remembers between two pushes; `torch.save` can write it."""

    audio: Tensor  # (n,) at the input's rate; what the resampler still needs
    wave: Tensor  # (m,) at 16 kHz; what the next block begins with
    encoder: State  # of B = 1
    decoder: Any = ()  # what the caller's decoder remembers; it is only carried along


torch.serialization.add_safe_globals([State, Stream])  # torch.load reads known types only


class Resampler:
    """Resamples to 16 kHz piece by piece, with the filter of torchaudio.

    It makes `made` samples from each `taken` ones; the filter sees `width` samples to
    both sides. like: a tensor of the wanted type and device.
    """

    def __init__(self, rate: int, like: Tensor):
        self.taken = 1
        self.made = 1
        self.width = 0
        self.kernel = like.new_ones(1, 1, 1)
        if rate != SAMPLE_RATE:
            resample = torchaudio.transforms.Resample(rate, SAMPLE_RATE, dtype=like.dtype)
            self.taken = rate // resample.gcd
            self.made = SAMPLE_RATE // resample.gcd
            self.width = resample.width
            self.kernel = resample.kernel.to(like)

    def __call__(self, audio: Tensor) -> Tensor:
        """(n,) -> (made * ((n - 2 width) // taken),): whole steps of the filter."""
        if len(audio) < self.kernel.shape[2]:
            return audio[:0]
        return F.conv1d(audio[None, None], self.kernel, stride=self.taken)[0].T.flatten()

    def steps_for(self, samples: int) -> int:
        """The steps that make at least so many samples."""
        return max(0, -(-samples // self.made))

    def needed(self, steps: int) -> int:
        """The samples that so many steps need."""
        return steps * self.taken + 2 * self.width


class StreamingEncoder:
    """Features and (a copy of) the encoder of a streaming recogniser, for mono audio of
    `rate` Hz. It holds no stream itself.

    Raises ValueError if the encoder has full context, and UserError for a rate without
    a simple ratio to 16 kHz: 8, 11.025, 22.05, 44.1, 48 kHz and many others are fine.
    """

    def __init__(self, features: LogMel, encoder: Conformer, rate: int = SAMPLE_RATE):
        if not encoder.chunk:
            raise ValueError("an encoder of full context needs the whole utterance at once")
        if max(rate, SAMPLE_RATE) // math.gcd(rate, SAMPLE_RATE) > 2000:
            what = f"A stream of {rate} Hz has no simple ratio to {SAMPLE_RATE} Hz"
            raise UserError(f"{what}: record it at {SAMPLE_RATE} Hz.")
        self.features = features
        self.encoder = copy.deepcopy(encoder).eval()
        for module in self.encoder.modules():
            if isinstance(module, nn.Linear):
                # A CPU multiplies a few rows by a transposed matrix a tenth faster.
                module.weight.data = module.weight.data.T.contiguous().T
        self.frames = encoder.chunk * encoder.factor  # features per block
        self.resample = Resampler(rate, like=features.window)
        self.delay = self.resample.width / rate  # seconds
        # What has to be read beyond a block before it is complete, in seconds.
        self.ahead = (WINDOW - HOP) / SAMPLE_RATE + self.delay + (self.resample.taken - 1) / rate

    def start(self) -> Stream:
        """A stream that has got nothing: zeros stand before its beginning."""
        zeros = self.features.window.new_zeros
        return Stream(zeros(self.resample.width), zeros(0), fresh_state(self.encoder, 1))

    @torch.inference_mode()
    def push(
        self, streams: Sequence[Stream], audio: Sequence[Tensor], end: bool = False
    ) -> tuple[list[Tensor], list[Stream]]:
        """Gives each stream its next samples (n,), in [-1, 1], any number of them; end:
        they are its last.

        Returns per stream the encoder frames (T, D) that are complete now, at the end
        all that are left, and the streams to go on with. Streams of one call are
        encoded as a batch. After its end a stream takes no more audio.
        """
        blocks = []
        advanced = []
        for stream, samples in zip(streams, audio, strict=True):
            its_blocks, stream = self._blocks(stream, samples, end)
            blocks.append(its_blocks)
            advanced.append(stream)
        state = join_states([stream.encoder for stream in advanced])
        nothing = self.features.window.new_zeros(0, N_MELS)
        norm = self.encoder.norm.weight
        found = [[norm.new_zeros(0, len(norm))] for _ in streams]
        for features in zip_longest(*blocks, fillvalue=nothing):
            frames = torch.tensor([len(block) for block in features], device=nothing.device)
            padded = nn.utils.rnn.pad_sequence(features, batch_first=True)  # (B, F, 80)
            encoded, state = encode_piece(self.encoder, padded, frames, state)
            lengths = encoded.lengths.tolist()
            for outputs, output, length in zip(found, encoded.output, lengths, strict=True):
                outputs.append(output[:length])
        states = split_state(state)
        streams = [s._replace(encoder=part) for s, part in zip(advanced, states, strict=True)]
        return [torch.cat(outputs) for outputs in found], streams

    def _blocks(self, stream: Stream, audio: Tensor, end: bool) -> tuple[list[Tensor], Stream]:
        """The features (F, 80) of each block that is complete now, at the end also of
        what is left."""
        audio = torch.cat([stream.audio, audio.to(stream.audio)])
        wave = stream.wave
        blocks = []
        complete = (self.frames - 1) * HOP + WINDOW  # samples of a block at 16 kHz
        while True:
            steps = self.resample.steps_for(complete - len(wave))
            needed = self.resample.needed(steps)
            if needed > len(audio):
                break
            wave = torch.cat([wave, self.resample(audio[:needed])])
            audio = audio[steps * self.resample.taken :]
            blocks.append(self._features(wave[:complete]))
            wave = wave[self.frames * HOP :]
        if end:
            wave = torch.cat([wave, self._last_samples(audio)])
            while len(wave) >= WINDOW:
                blocks.append(self._features(wave[:complete]))
                wave = wave[self.frames * HOP :]
            audio = audio.new_zeros(self.resample.width)
            wave = wave[:0]
        # Clones: a stream must not keep alive the long tensors that these were cut from.
        return blocks, stream._replace(audio=audio.clone(), wave=wave.clone())

    def _last_samples(self, audio: Tensor) -> Tensor:
        """What the resampler makes of the rest, with zeros behind it."""
        filter = self.resample
        left = -((filter.width - len(audio)) * filter.made // filter.taken)  # samples at 16 kHz
        return filter(F.pad(audio, (0, filter.width + filter.taken)))[:left]

    def _features(self, wave: Tensor) -> Tensor:
        """(n,) -> (F, 80)."""
        return self.features(wave[None], torch.tensor([len(wave)], device=wave.device))[0][0]


# ==================================================================================== decoding

LONG_WORD = 30  # characters: of a longer word, what is there settles before its end [choice]
UNDECODABLE = "\N{REPLACEMENT CHARACTER}"  # a tokenizer of bytes writes it for part of a character


class WordPart(str):
    """Settled text of a word that goes on: what settles next follows at once."""


def greedy_words(
    recogniser: nn.Module, frames: Tensor, decoder: tuple
) -> tuple[list[str], str, tuple]:
    """Goes on with greedy decoding of a transducer: encoder frames (T, D) -> words
    settled now, partial word, decoder.

    decoder: () at the beginning; then W_p g, the prediction network's state, the labels
    of the word being written that have not settled, and how many of its characters
    have.

    A word settles when the next one begins. Where no spaces are written, that may never
    happen: there, all but the last piece settles as soon as that piece cannot change
    it, as a `WordPart`. The same holds behind a character of a script without spaces
    between words, and in a word of any script that is longer than LONG_WORD. All that
    settles, followed by the partial word, is the text: with a space behind every word,
    and none behind a part.
    """
    predictor = recogniser.predictor
    joint = recogniser.joint
    decode = recogniser.tokenizer.decode
    if not decoder:
        output, state = predictor(torch.full((1, 1), BLANK, device=frames.device))
        decoder = joint.predict(output)[0, 0], state, [], 0
    predicted, state, labels, length = decoder
    settled: list[str] = []
    for encoded in joint.encode(frames):
        for _ in range(10):  # labels per frame, as in rnnt.greedy
            label = int(joint(encoded, predicted).argmax())
            if label == BLANK:
                break
            output, state = predictor(torch.full((1, 1), label, device=frames.device), state)
            predicted = joint.predict(output)[0, 0]
            before = labels
            labels = [*before, label]
            words = decode(labels).split()
            if len(words) > 1:
                settled += words[:-1]
                labels = [label]
                length = 0
                continue
            part = settled_part(decode, before, label, length)
            if part:
                settled.append(WordPart(part))
                labels = [label]
                length += len(part)
    return settled, decode(labels).strip(), (predicted, state, labels, length)


def settled_part(
    decode: Callable[[list[int]], str], labels: list[int], label: int, length: int
) -> str:
    """What settles of the text of `labels` inside a word, now that `label` follows: all
    of it, or nothing.

    decode: of a tokenizer. length: how many characters of the word have settled before.
    """
    text = decode(labels)
    last = decode([label])
    is_final = decode([*labels, label]) == text + last and not text.endswith(UNDECODABLE)
    if not text or not last or not is_final:  # `last` may be a space, which nobody sees yet
        return ""
    needs_no_end = has_no_spaces_between_words(text[-1]) or length + len(text) > LONG_WORD
    return text if needs_no_end else ""
