"""Log-mel features, speed perturbation, SpecAugment, and pauses in long recordings.

    file --audio.read_audio--> (samples,) float32 in [-1, 1] at 16 kHz
         --LogMel-->           (frames, 80), one frame per 10 ms

A frame reaches 25 ms ahead of its start, and nothing is padded around the signal. So an
utterance gives the same frames alone and in a padded batch:

    frames = (samples - 400) // 160 + 1
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torchaudio.functional as AF
from torch import Tensor, nn

from common.errors import UserError

SAMPLE_RATE = 16_000  # Hz, of all audio inside the models
WINDOW = 400  # samples = 25 ms
HOP = 160  # samples = 10 ms
FRAME_SECONDS = HOP / SAMPLE_RATE
N_MELS = 80


def change_speed(wave: Tensor, factor: float) -> Tensor:
    """Plays (samples,) faster (factor > 1) or slower, in per cent; the pitch moves too.

    Ko et al., Interspeech 2015.
    """
    return wave if factor == 1 else AF.resample(wave, round(100 * factor), 100)


def num_frames(samples):
    """The number of frames of `samples` samples (int or Tensor), at least one."""
    return (
        (samples.clamp(min=WINDOW) if isinstance(samples, Tensor) else max(samples, WINDOW))
        - WINDOW
    ) // HOP + 1


class LogMel(nn.Module):
    """A log-mel filter bank with a global mean and variance, stored as buffers."""

    def __init__(self):
        super().__init__()
        filters = AF.melscale_fbanks(
            WINDOW // 2 + 1, 20.0, 7600.0, N_MELS, SAMPLE_RATE
        )  # (201, 80)
        # The spectrum comes as re, im, re, im, …: with every filter row twice, the matrix
        # product adds re^2 + im^2.
        self.register_buffer("filters", filters.repeat_interleave(2, dim=0), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW, periodic=False), persistent=False)
        self.register_buffer("mean", torch.zeros(N_MELS))
        self.register_buffer("std", torch.ones(N_MELS))

    def forward(self, waves: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """waves (B, N) with padding, samples (B,) -> features (B, F, 80), frames (B,).

        Behind an utterance's end the features are zero.
        """
        frames = num_frames(samples)
        features = (self.log_mel(waves) - self.mean) / self.std
        padding = torch.arange(features.shape[1], device=waves.device) >= frames[:, None]  # (B, F)
        return features.masked_fill(padding[..., None], 0.0), frames

    def log_mel(self, waves: Tensor) -> Tensor:
        """waves (B, N) -> (B, F, 80), not normalised.

        It is always computed in fp32: quiet frames would suffer in bf16.
        """
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
        """Sets mean and standard deviation per mel channel from (samples,) waves.

        Raises UserError without any.
        """
        count = 0
        total = 0.0
        squares = 0.0
        for wave in waves:
            features = self.log_mel(wave[None].to(self.window.device))[0].double()
            count += len(features)
            total = total + features.sum(0)
            squares = squares + features.square().sum(0)
        if not count:
            raise UserError("no audio to take the mean and variance of the features from")
        self.mean.copy_(total / count)
        self.std.copy_((squares / count - (total / count).square()).clamp(min=1e-4).sqrt())


def spec_augment(
    features: Tensor,
    frames: Tensor,
    frequency_masks: int,
    frequency_width: int,
    time_masks: int,
    time_share: float,
) -> Tensor:
    """Blanks random bands and stretches of normalised features (B, F, 80), zero being
    their mean. Park et al. 2019.

    Each frequency mask covers 0..frequency_width channels, each time mask 0..time_share
    of the utterance's own frames. Draws from torch's global CPU generator, so that a
    CPU and a GPU mask the same.
    """
    B, F, C = features.shape

    def masks(n: int, positions: int, size: Tensor, widest: Tensor) -> Tensor:
        """n masks of width 0..widest inside 0..size: (B, positions), True inside."""
        width = (torch.rand(B, n) * (widest[:, None] + 1)).floor()
        start = (torch.rand(B, n) * (size[:, None] - width + 1)).floor()
        where = torch.arange(positions)[:, None]  # (positions, 1) against (B, 1, n)
        return ((where >= start[:, None]) & (where < (start + width)[:, None])).any(-1)

    frames = frames.cpu()
    over_frequency = masks(
        frequency_masks, C, torch.full((B,), C), torch.full((B,), min(frequency_width, C))
    )
    over_time = masks(time_masks, F, frames, (frames * time_share).floor())
    blank = over_time[:, :, None] | over_frequency[:, None, :]
    return features.masked_fill(blank.to(features.device), 0.0)


def mix_utterances(features: Tensor, frames: Tensor, share: float, frontend: LogMel) -> Tensor:
    """Adds 0.4 of another utterance's power to `share` of the batch: "sequence noise
    injection", Saon et al. 2019.

    features (B, F, 80) normalised, frames (B,). log(e^x_i + 0.4 e^x_j) of the log-mel
    features themselves.
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
    """Cuts (samples,) into pieces of at most `longest` seconds, each cut at the
    quietest moment of the second half.

    longest: more than 0, however short. Returns [(start, end), …] in samples; the
    pieces follow each other without gap or overlap.
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
