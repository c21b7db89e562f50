"""Features: the filter bank against another library, padding, masks, speed, splitting at pauses."""

import math

import numpy as np
import pytest
import torch
import torchaudio

from common.errors import UserError
from common.features import (
    HOP,
    SAMPLE_RATE,
    WINDOW,
    LogMel,
    change_speed,
    mix_utterances,
    num_frames,
    spec_augment,
    split_at_pauses,
)


def tone(seconds: float, rate: int = SAMPLE_RATE, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(
        np.float32
    )


def test_number_of_frames():
    for samples in [1, 399, 400, 401, 559, 560, 16000, 16079, 16080, 16081]:
        features, frames = LogMel()(torch.randn(1, samples), torch.tensor([samples]))
        assert (
            features.shape[1]
            == frames.item()
            == num_frames(samples)
            == (max(samples, 400) - 400) // 160 + 1
        )


def test_filter_bank_against_torchaudio():
    wave = torch.randn(1, 16000)
    expected = torchaudio.transforms.MelSpectrogram(
        SAMPLE_RATE, n_fft=WINDOW, hop_length=HOP, f_min=20.0, f_max=7600.0, n_mels=80, center=False,
        window_fn=torch.hann_window, wkwargs={"periodic": False},
    )(wave)  # fmt: skip
    assert torch.allclose(
        LogMel().log_mel(wave), expected.clamp(min=1e-10).log().transpose(1, 2), atol=1e-4
    )


def test_alone_is_as_in_a_padded_batch():
    waves, samples = torch.randn(3, 9000), torch.tensor([9000, 5000, 100])
    for i, n in enumerate(samples):
        waves[i, n:] = 7.0  # what stands behind the end must not matter to the frames before it
    features, frames = LogMel()(waves, samples)
    for i, n in enumerate(samples[:2]):
        alone, count = LogMel()(waves[i : i + 1, :n], samples[i : i + 1])
        assert count == frames[i]
        assert (alone[0] - features[i, :count]).abs().max() <= 1e-5
        assert (features[i, count:] == 0).all()


def test_statistics_normalise():
    frontend = LogMel()
    waves = [torch.randn(16000) * scale for scale in (0.1, 1.0, 3.0)]
    frontend.fit(waves)
    features = torch.cat([frontend(w[None], torch.tensor([16000]))[0][0] for w in waves])
    assert features.mean(0).abs().max() < 1e-3
    assert (features.std(0) - 1).abs().max() < 0.02
    assert set(frontend.state_dict()) == {
        "mean",
        "std",
    }  # what a checkpoint must carry, and no more


def test_no_audio_to_normalise_by():
    with pytest.raises(UserError, match="no audio"):
        LogMel().fit([])


def test_features_stay_fp32_under_autocast():
    wave = torch.randn(1, 4000)
    with torch.autocast("cpu", torch.bfloat16):
        features = LogMel().log_mel(wave)
    assert features.dtype == torch.float32 and torch.equal(features, LogMel().log_mel(wave))


def test_speed():
    wave = torch.from_numpy(tone(1.0))
    assert change_speed(wave, 1.0) is wave
    for factor in (0.9, 0.95, 1.1):
        assert abs(len(change_speed(wave, factor)) - SAMPLE_RATE / factor) <= 1


def test_spec_augment_blanks_no_more_than_it_may():
    torch.manual_seed(0)
    frames, share = torch.tensor([200, 40]), 0.05
    widest = [0, 0]
    for _ in range(200):
        out = spec_augment(torch.ones(2, 200, 80), frames, 0, 27, 1, share)
        for i, n in enumerate(frames):
            blank = (out[i] == 0).all(-1).nonzero()[:, 0]
            widest[i] = max(widest[i], len(blank))
            assert len(blank) <= n * share and (blank < n).all()
            assert len(blank) == 0 or len(blank) == blank[-1] - blank[0] + 1  # one stretch
    assert widest == [10, 2]  # and it does reach what it may
    out = spec_augment(torch.ones(2, 200, 80), frames, 2, 27, 0, share)
    assert (out == 0).all(1).sum(-1).max() <= 54 and (out == out[:, :1]).all()


def test_long_audio_is_cut_in_the_pauses():
    wave = torch.randn(SAMPLE_RATE * 60)
    pauses = [8, 15, 24, 31, 40, 48, 55]  # seconds
    for second in pauses:
        wave[second * SAMPLE_RATE : second * SAMPLE_RATE + 8000] = 0.0
    pieces = split_at_pauses(wave, longest=10.0)
    assert pieces[0][0] == 0 and pieces[-1][1] == len(wave)
    assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:], strict=False))
    assert all(0 < end - start <= 10 * SAMPLE_RATE for start, end in pieces)
    assert all(any(s <= end / SAMPLE_RATE <= s + 0.5 for s in pauses) for _, end in pieces[:-1])
    assert split_at_pauses(wave[:100], 10.0) == [(0, 100)]


@pytest.mark.parametrize(
    "longest", [1e-9, 1 / SAMPLE_RATE, 1e-4, 0.01, 0.1, 0.2, 0.3, 0.39, 0.30004, 1.7, 1e9, math.inf]
)
@pytest.mark.parametrize("samples", [0, 1, 2, 3, 399, 4801, 16_000, 40_001])
def test_long_audio_is_cut_however_short_the_pieces(longest, samples):
    samples = min(samples, 500) if longest < 0.001 else samples
    limit = max(1, longest * SAMPLE_RATE)
    for wave in (torch.randn(samples), torch.zeros(samples), torch.linspace(1, 0, samples)):
        pieces = split_at_pauses(wave, longest)
        assert pieces[0][0] == 0 and pieces[-1][1] == samples
        assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:], strict=False))
        assert all(0 < end - start <= limit for start, end in pieces) or samples == 0


def test_mixing_adds_power_where_both_speak():
    torch.manual_seed(0)
    frontend = LogMel()
    frontend.mean.fill_(-3.0), frontend.std.fill_(2.0)
    x, frames = torch.randn(2, 4, 80), torch.tensor([4, 2])
    assert mix_utterances(x, frames, 0.0, frontend) is x
    found, power = mix_utterances(x, frames, 1.0, frontend), lambda z: (z * 2 - 3).exp()
    assert torch.equal(found[:, 2:], x[:, 2:])  # one of the two is silent there
    assert torch.allclose(
        power(found[:, :2]), power(x[:, :2]) + 0.4 * power(x[:, :2].flip(0)), rtol=1e-3
    )
    assert torch.equal(mix_utterances(x[:1], frames[:1], 1.0, frontend), x[:1])
    shares = [
        (mix_utterances(x, frames, 0.3, frontend) != x).any((1, 2)).float().mean()
        for _ in range(300)
    ]
    assert torch.stack(shares).mean().item() == pytest.approx(0.3, abs=0.06)
