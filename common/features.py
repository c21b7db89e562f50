"""Audio to log-mel features: reading, speed perturbation, the filter bank, SpecAugment, splitting long recordings.

    file --read_audio--> (samples,) float32 in [-1, 1] at 16 kHz --LogMel--> (frames, 80), one frame per 10 ms

A frame looks 25 ms ahead of its start and nothing is padded around the signal, so that an utterance gives the same
frames alone and in a padded batch: frames = (samples - 400) // 160 + 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional as AF
from torch import Tensor, nn

from common.flags import UserError

SAMPLE_RATE = 16_000  # Hz
WINDOW = 400  # samples = 25 ms
HOP = 160  # samples = 10 ms
FRAME_SECONDS = HOP / SAMPLE_RATE
N_MELS = 80


class AudioError(UserError):
    """An audio file that cannot be read, or holds no audio."""


def read_audio(
    path: str | Path, offset: float = 0.0, duration: float | None = None, channel: int | None = None
) -> Tensor:
    """Reads `duration` seconds (all: None) from `offset` seconds on, as mono 16 kHz.

    Any format libsndfile knows (WAV, FLAC, OGG, MP3, …), any rate. A named channel (0, 1, …) is read alone; without one
    the channels are averaged. Returns (samples,) float32. Raises AudioError.
    """
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate = file.samplerate
            if offset:
                file.seek(min(round(offset * rate), file.frames))
            expected = file.frames - file.tell()
            if duration is not None:
                expected = min(expected, round(duration * rate))
            samples = file.read(expected, dtype="float32", always_2d=True)  # (samples, channels)
    except (OSError, RuntimeError) as error:  # soundfile.LibsndfileError is a RuntimeError
        raise AudioError(f"{path} cannot be read ({str(error).splitlines()[0]})") from None
    if not len(samples):
        raise AudioError(f"{path} holds no audio" + (f" after {offset:.2f} s" if offset else ""))
    if len(samples) < expected and not str(path).lower().endswith(".mp3"):  # an MP3's length is an estimate
        raise AudioError(f"{path} is cut off: {len(samples) / rate:.2f} of {expected / rate:.2f} s could be read")
    if channel is not None and channel >= samples.shape[1]:
        raise AudioError(f"{path} has no channel {channel} (it has {samples.shape[1]}, counted from 0)")
    mono = samples.mean(axis=1) if channel is None else samples[:, channel]
    return AF.resample(torch.from_numpy(np.ascontiguousarray(mono)), rate, SAMPLE_RATE)


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
        behind = torch.arange(features.shape[1], device=waves.device) >= frames[:, None]  # (B, F)
        return features.masked_fill(behind[..., None], 0.0), frames

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


def split_at_pauses(wave: Tensor, longest: float) -> list[tuple[int, int]]:
    """Cuts (samples,) into pieces of at most `longest` seconds, each cut at the quietest moment of the second half.

    Returns [(start, end), …] in samples; the pieces follow each other without gap or overlap.
    """
    limit, quiet = round(longest * SAMPLE_RATE), SAMPLE_RATE // 5  # a pause is judged over 0.2 s
    pieces, start = [], 0
    while len(wave) - start > limit:
        window = wave[start + limit // 2 : start + limit].square()
        energy = nn.functional.avg_pool1d(window[None, None], quiet, stride=quiet // 4)[0, 0]
        cut = start + limit // 2 + int(energy.argmin()) * (quiet // 4) + quiet // 2
        pieces.append((start, cut))
        start = cut
    return [*pieces, (start, len(wave))]
