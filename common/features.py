"""Audio to log-mel features: reading, speed perturbation, the filter bank, SpecAugment, splitting long recordings.

    file --read_audio--> (samples,) float32 in [-1, 1] at 16 kHz --LogMel--> (frames, 80), one frame per 10 ms

A frame looks 25 ms ahead of its start and nothing is padded around the signal, so that an utterance gives the same
frames alone and in a padded batch: frames = (samples - 400) // 160 + 1.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional as AF
from torch import Tensor, nn

from common.flags import UserError
from common.text import printable

SAMPLE_RATE = 16_000  # Hz
WINDOW = 400  # samples = 25 ms
HOP = 160  # samples = 10 ms
FRAME_SECONDS = HOP / SAMPLE_RATE
N_MELS = 80
FORMATS = "WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC", "OGG", "MP3"  # that tell where they end
FILE_RATES = 1_000, 768_000  # Hz, the lowest and the highest rate of a file [choice]
LOUDEST = 1e10  # full scale is 1, or 2^31 for integers kept as floats; (400 x 1e10)^2 still fits fp32 [choice]
BLOCK = 1 << 22  # samples decoded at a time, all channels together: 16 MB
STREAMED = 0x7FFF0000  # bytes; programs that write into a pipe do not know the length, and claim so much or more
CLAIMED = re.compile(r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)


class AudioError(UserError):
    """An audio file that cannot be read, or not all of it, or holds no audio."""


@contextmanager
def open_audio(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """An audio file whose header has been checked. Raises AudioError, also where reading fails inside the block.

    Only regular files are opened: a pipe or a device may never answer.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise AudioError("it is a directory" if stat.S_ISDIR(status.st_mode) else "it is not a regular file")
        if not status.st_size:
            raise AudioError("it is empty")
        with open(path, "rb") as raw, soundfile.SoundFile(raw.fileno(), closefd=False) as file:
            if file.format not in FORMATS:
                raise AudioError(f"it is {file.format_info}, not one of {', '.join(FORMATS)}")
            if not FILE_RATES[0] <= file.samplerate <= FILE_RATES[1]:
                raise AudioError(f"its rate of {file.samplerate} Hz is not between {FILE_RATES[0]} and {FILE_RATES[1]}")
            if file.frames <= 0:
                raise AudioError("it holds no audio")
            if _is_cut_off(file, raw.fileno()):
                raise AudioError("it is cut off: its header says that it is longer")
            yield file
    except AudioError as error:
        reason = str(error)
    except OSError as error:
        reason = error.strerror.lower()
    except ValueError:  # a zero byte, or half a character
        reason = "no file can have such a name"
    except RuntimeError:  # libsndfile's own words help only those who know its source
        reason = "it is damaged, or no audio file"
    else:
        return
    raise AudioError(f"{printable(path)} cannot be read: {reason}")


def _is_cut_off(file: soundfile.SoundFile, descriptor: int) -> bool:
    """Whether a file ends sooner than it says; FLAC and MP3 show that only when they are read.

    libsndfile reads such a file as if it were whole, and notes in its log which chunk claims more bytes than there are.
    """
    if file.format == "NIST":
        claimed = re.search(rb"sample_count -i (\d+)", os.pread(descriptor, 1024, 0))
        return claimed is not None and int(claimed[1]) > file.frames
    if file.format != "OGG":
        sizes = [map(int, found) for found in CLAIMED.findall(file.extra_info)]
        return any(present < claimed < STREAMED for claimed, present in sizes)
    # RFC 3533: a page is at most 65,307 bytes long; flag 4 marks the last one, byte 26 counts its segments' sizes.
    tail = os.pread(descriptor, 1 << 16, max(0, os.fstat(descriptor).st_size - (1 << 16)))
    page = tail[tail.rfind(b"OggS") :]
    return len(page) < 27 or not page[5] & 4 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])


def audio_seconds(path: str | Path) -> float:
    """The length of an audio file, as its header has it. Raises AudioError."""
    with open_audio(path) as file:
        return _length(file) / file.samplerate


def _length(file: soundfile.SoundFile) -> int:
    """Samples of a file; the header of a FLAC file that was written into a pipe does not say."""
    if file.frames >= 1 << 62:
        raise AudioError("it does not say how long it is: write it anew, or give its duration in a manifest")
    return file.frames


def read_audio(
    path: str | Path, offset: float = 0.0, duration: float | None = None, channel: int | None = None
) -> Tensor:
    """Reads `duration` seconds (all: None) from `offset` seconds on, as mono 16 kHz.

    WAV, FLAC, OGG, MP3 and the other FORMATS at any rate from 1 to 768 kHz. A named channel (0, 1, …) is read alone;
    without one the channels are averaged. Returns (samples,) float32. Raises AudioError, also where the file
    holds clearly less (by 0.1 s and by 1 %) than `duration`, or samples that are not finite.
    """
    with open_audio(path) as file:
        rate = file.samplerate
        if not 0 <= offset < math.inf or not (duration is None or 0 < duration < math.inf):
            raise AudioError(f"there is no offset of {offset} s with a duration of {duration} s")
        if channel is not None and channel not in range(file.channels):
            raise AudioError(f"it has no channel {channel} (it has {file.channels}, counted from 0)")
        start = round(min(offset * rate, file.frames))
        wanted = _length(file) - start if duration is None else round(min(duration * rate, file.frames - start))
        if start:
            file.seek(start)
        mono = _decode(file, wanted, channel)
        seconds = len(mono) / rate
        if not len(mono):
            raise AudioError(f"it holds no audio after {offset:.2f} s")
        # The length of an MP3 is an estimate.
        if _clearly_less(seconds, wanted / rate) or (len(mono) < wanted and file.format != "MP3"):
            raise AudioError(f"it is cut off: {seconds:.2f} of {wanted / rate:.2f} s could be read")
        if duration is not None and _clearly_less(seconds, duration):
            raise AudioError(f"it holds {seconds:.2f} of {duration:.2f} s after {offset:.2f} s")
        if not np.abs(mono).max() <= LOUDEST:
            raise AudioError("it holds samples that are not finite, or too large to be audio")
    return resample(torch.from_numpy(mono), rate)


def _decode(file: soundfile.SoundFile, wanted: int, channel: int | None) -> np.ndarray:
    """The next `wanted` samples or as many as there are: (samples,) float32.

    Block by block, so that memory follows what is there rather than what a header claims.
    """
    file.seekable = lambda: False  # else soundfile seeks after each block, after which an MP3 is decoded differently
    parts, left = [np.zeros(0, dtype=np.float32)], wanted
    size = max(1, BLOCK // file.channels)
    with np.errstate(over="ignore", invalid="ignore"):
        while left and len(block := file.read(min(left, size), dtype="float32", always_2d=True)):  # (samples, channels)
            parts.append(block.mean(axis=1) if channel is None else block[:, channel].copy())
            left -= len(block)
    return np.concatenate(parts)


def _clearly_less(seconds: float, expected: float) -> bool:
    return expected - seconds > max(0.1, 0.01 * expected)


def resample(wave: Tensor, rate: int) -> Tensor:
    """(samples,) at `rate` Hz to 16 kHz; the pitch is exact at every rate.

    torchaudio's filters have as many taps and phases as both rates have left after division by their common factor:
    2 for 8 kHz, 441 for 44.1 kHz, but 47,999 for 47,999 Hz. Rates beyond 2,000 are resampled by FFT, in stretches of 8
    seconds with a second before and behind, because whole seconds have whole numbers of samples at both rates.
    """
    if max(rate, SAMPLE_RATE) // math.gcd(rate, SAMPLE_RATE) <= 2000:
        return AF.resample(wave, rate, SAMPLE_RATE)
    stretches = nn.functional.pad(wave, (rate, 9 * rate)).unfold(0, 10 * rate, 8 * rate)  # (n, 10 s)
    spectra = (torch.fft.rfft(stretch) for stretch in stretches)
    waves = [torch.fft.irfft(spectrum, 10 * SAMPLE_RATE)[SAMPLE_RATE:-SAMPLE_RATE] for spectrum in spectra]
    return torch.cat(waves)[: math.ceil(len(wave) * SAMPLE_RATE / rate)] * (SAMPLE_RATE / rate)


def change_speed(wave: Tensor, factor: float) -> Tensor:
    """Plays (samples,) faster (factor > 1) or slower, in per cent; the pitch moves too. Ko et al., Interspeech 2015."""
    return wave if factor == 1 else AF.resample(wave, round(100 * factor), 100)


def num_frames(samples):
    """Frames of `samples` samples (int or Tensor); anything shorter than one window is padded to one frame."""
    return ((samples.clamp(min=WINDOW) if isinstance(samples, Tensor) else max(samples, WINDOW)) - WINDOW) // HOP + 1


class LogMel(nn.Module):
    """Log-mel filter bank with global mean and variance normalisation; its statistics travel with the weights."""

    def __init__(self):
        super().__init__()
        filters = AF.melscale_fbanks(WINDOW // 2 + 1, 20.0, 7600.0, N_MELS, SAMPLE_RATE)  # (201, 80)
        # The spectrum comes as re, im, re, im, …: with every filter row twice, the matrix product adds re^2 + im^2.
        self.register_buffer("filters", filters.repeat_interleave(2, dim=0), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW, periodic=False), persistent=False)
        self.register_buffer("mean", torch.zeros(N_MELS))
        self.register_buffer("std", torch.ones(N_MELS))

    def forward(self, waves: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """waves (B, N) zero-padded, samples (B,) -> features (B, F, 80), zero behind the end; frames (B,)."""
        frames = num_frames(samples)
        features = (self.log_mel(waves) - self.mean) / self.std
        padding = torch.arange(features.shape[1], device=waves.device) >= frames[:, None]  # (B, F)
        return features.masked_fill(padding[..., None], 0.0), frames

    def log_mel(self, waves: Tensor) -> Tensor:
        """waves (B, N) -> (B, F, 80), not normalised; fp32 under autocast too, for the sake of quiet frames."""
        waves = nn.functional.pad(waves, (0, max(0, WINDOW - waves.shape[1])))
        # On a CPU one utterance at a time stays in the cache, which is twice as fast.
        parts = waves.split(1 if waves.device.type == "cpu" else len(waves))
        with torch.autocast(waves.device.type, enabled=False):
            return torch.cat([self._log_mel(part) for part in parts])

    def _log_mel(self, waves: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(waves.unfold(-1, WINDOW, HOP) * self.window)  # (B, F, 201)
        power = torch.view_as_real(spectrum).square().flatten(-2)  # (B, F, 402)
        return (power @ self.filters).clamp(min=1e-10).log()

    def fit(self, waves: Iterable[Tensor]) -> None:
        """Sets mean and standard deviation per mel channel from (samples,) waves. Raises AudioError without any."""
        count, total, squares = 0, 0.0, 0.0
        for wave in waves:
            features = self.log_mel(wave[None].to(self.window.device))[0].double()
            count, total, squares = count + len(features), total + features.sum(0), squares + features.square().sum(0)
        if not count:
            raise AudioError("no audio to take the mean and variance of the features from")
        self.mean.copy_(total / count)
        self.std.copy_((squares / count - (total / count).square()).clamp(min=1e-4).sqrt())


def spec_augment(
    features: Tensor, frames: Tensor, frequency_masks: int, frequency_width: int, time_masks: int, time_share: float
) -> Tensor:
    """Blanks random bands and stretches of normalised features (B, F, 80), zero being their mean. Park et al. 2019.

    Each frequency mask covers 0..frequency_width channels, each time mask 0..time_share of the utterance's own frames.
    Draws from torch's global CPU generator, so that a CPU and a GPU mask the same.
    """
    B, F, C = features.shape

    def masks(n: int, positions: int, size: Tensor, widest: Tensor) -> Tensor:
        """(B, positions), True where any of n masks of width 0..widest lies inside 0..size."""
        width = (torch.rand(B, n) * (widest[:, None] + 1)).floor()
        start = (torch.rand(B, n) * (size[:, None] - width + 1)).floor()
        where = torch.arange(positions)[:, None]  # (positions, 1) against (B, 1, n)
        return ((where >= start[:, None]) & (where < (start + width)[:, None])).any(-1)

    frames = frames.cpu()
    over_frequency = masks(frequency_masks, C, torch.full((B,), C), torch.full((B,), min(frequency_width, C)))
    over_time = masks(time_masks, F, frames, (frames * time_share).floor())
    blank = over_time[:, :, None] | over_frequency[:, None, :]
    return features.masked_fill(blank.to(features.device), 0.0)


def mix_utterances(features: Tensor, frames: Tensor, share: float, frontend: LogMel) -> Tensor:
    """Adds 0.4 of another utterance's power to `share` of the batch: "sequence noise injection", Saon et al. 2019.

    features (B, F, 80) normalised, frames (B,). log(e^x_i + 0.4 e^x_j) of the log-mel features themselves.
    """
    B, device = len(features), features.device
    if not share or B < 2:
        return features
    partner = torch.arange(B, device=device).roll(int(torch.randint(1, B, ())))  # drawn on the CPU
    chosen = (torch.rand(B) < share).to(device)
    until = torch.where(chosen, torch.minimum(frames, frames[partner]), 0)[:, None]
    both = torch.arange(features.shape[1], device=device) < until  # (B, F)
    x = features * frontend.std + frontend.mean
    mixed = (torch.logaddexp(x, x[partner] + math.log(0.4)) - frontend.mean) / frontend.std
    return torch.where(both[..., None], mixed, features)


def split_at_pauses(wave: Tensor, longest: float) -> list[tuple[int, int]]:
    """Cuts (samples,) into pieces of at most `longest` seconds, each cut at the quietest moment of the second half.

    longest: more than 0, however short. Returns [(start, end), …] in samples; the pieces follow each other without gap
    or overlap.
    """
    limit = max(1, int(min(longest * SAMPLE_RATE, len(wave))))  # samples
    half = limit // 2
    pause = min(SAMPLE_RATE // 5, limit - half)  # samples: a pause is judged over 0.2 s
    stride = max(1, pause // 4)
    pieces, start = [], 0
    while len(wave) - start > limit:
        power = wave[start + half : start + limit].square()
        energy = nn.functional.avg_pool1d(power[None, None], pause, stride)[0, 0]
        cut = start + max(1, half + int(energy.argmin()) * stride + pause // 2)
        pieces.append((start, cut))
        start = cut
    return [*pieces, (start, len(wave))]
