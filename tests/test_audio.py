"""Audio in: formats and rates, files damaged, joined or never finished, channels that cancel each other."""

import math
import os
import struct
import time

import numpy as np
import pytest
import soundfile
import torch

from common import audio as reading
from common.audio import FORMATS, SAMPLE_RATE, AudioError, audio_seconds, read_audio
from common.features import LogMel


def tone(seconds: float, rate: int = SAMPLE_RATE, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats_rates_and_channels_give_the_same_sound(tmp_path, suffix):
    reference = torch.from_numpy(tone(1.0))
    for rate in (8000, 16000, 44100):
        path = tmp_path / f"{rate}.{suffix}"
        soundfile.write(path, np.stack([tone(1.0, rate), tone(1.0, rate)], axis=1), rate)
        wave = read_audio(path)
        assert abs(len(wave) - SAMPLE_RATE) <= (2000 if suffix == "mp3" else 2)
        spectrum, expected = (torch.fft.rfft(w[2000:10000]).abs() for w in (wave, reference))
        assert spectrum.argmax() == expected.argmax()
        assert abs(wave[2000:10000].std() - reference[2000:10000].std()) < 0.02


def test_channels_offsets_and_durations(tmp_path):
    left, right = tone(2.0, hertz=300), tone(2.0, hertz=600)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), SAMPLE_RATE, subtype="FLOAT")
    assert torch.equal(read_audio(tmp_path / "a.wav", channel=0), torch.from_numpy(left))
    assert torch.equal(read_audio(tmp_path / "a.wav", channel=1), torch.from_numpy(right))
    assert torch.allclose(read_audio(tmp_path / "a.wav"), torch.from_numpy((left + right) / 2))
    part = read_audio(tmp_path / "a.wav", offset=0.5, duration=0.25, channel=1)
    assert torch.equal(part, torch.from_numpy(right[8000:12000]))
    with pytest.raises(AudioError, match="no channel 2"):
        read_audio(tmp_path / "a.wav", channel=2)
    with pytest.raises(AudioError, match="no audio after"):
        read_audio(tmp_path / "a.wav", offset=3.0)


def test_damaged_files_are_named(tmp_path):
    soundfile.write(tmp_path / "good.flac", np.random.default_rng(0).standard_normal(32000) / 10, SAMPLE_RATE)
    content = (tmp_path / "good.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.flac").write_bytes(b"")
    soundfile.write(tmp_path / "silent.wav", np.zeros(0, dtype=np.float32), SAMPLE_RATE)
    for name in ("cut.flac", "empty.flac", "missing.flac", "silent.wav"):
        with pytest.raises(AudioError, match=name):
            read_audio(tmp_path / name)


# ------------------------------------------------------------------------------------------- files that are not whole

WRITTEN = [  # (suffix, format, subtype): whatever soundfile can write of what we read
    ("wav", "WAV", "PCM_16"), ("wav", "WAV", "FLOAT"), ("wav", "WAV", "IMA_ADPCM"), ("wav", "WAVEX", "PCM_24"),
    ("wav", "RF64", "PCM_16"), ("w64", "W64", "PCM_16"), ("aiff", "AIFF", "PCM_16"), ("au", "AU", "PCM_16"),
    ("caf", "CAF", "PCM_16"), ("sph", "NIST", "PCM_16"), ("flac", "FLAC", "PCM_16"), ("ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"), ("mp3", "MP3", "MPEG_LAYER_III"),
]  # fmt: skip


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(samples) / 10


def write(path, content: bytes):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix, form, subtype", WRITTEN)
def test_a_file_cut_off_anywhere_is_unreadable(tmp_path, suffix, form, subtype):
    whole = tmp_path / f"whole.{suffix}"
    soundfile.write(whole, noise(6 * SAMPLE_RATE), SAMPLE_RATE, format=form, subtype=subtype)
    assert abs(len(read_audio(whole)) / SAMPLE_RATE - 6) < 0.05
    assert audio_seconds(whole) == pytest.approx(6, abs=0.05)
    content = whole.read_bytes()
    for share in (0.001, 0.01, 0.3, 0.5, 0.9) + (() if suffix == "mp3" else (0.999,)):
        with pytest.raises(AudioError, match=f"cut.{suffix} cannot be read"):
            read_audio(write(tmp_path / f"cut.{suffix}", content[: int(share * len(content))]))


def test_every_format_that_we_read_was_cut_off():
    assert {form for _, form, _ in WRITTEN} == set(FORMATS)


def test_formats_that_do_not_tell_where_they_end_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.voc", noise(1600), SAMPLE_RATE)
    with pytest.raises(AudioError, match="Creative Labs.* not one of WAV"):
        read_audio(tmp_path / "a.voc")
    (tmp_path / "a.raw").write_bytes(bytes(1600))  # soundfile asks for a rate where a name ends so
    with pytest.raises(AudioError, match="no audio file"):
        read_audio(tmp_path / "a.raw")


@pytest.mark.parametrize("size", [0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_a_wav_written_into_a_pipe_has_no_length_and_is_whole(tmp_path, size):
    soundfile.write(tmp_path / "a.wav", noise(16000), SAMPLE_RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = content[40:44] = struct.pack("<I", size)
    assert len(read_audio(write(tmp_path / "b.wav", bytes(content)))) == 16000


def test_headers_that_claim_a_thousand_million_samples(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(16000), SAMPLE_RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[40:44] = struct.pack("<I", 2 * 10**9)
    with pytest.raises(AudioError, match="cut off"):
        read_audio(write(tmp_path / "b.wav", bytes(content)))
    soundfile.write(tmp_path / "a.flac", noise(16000), SAMPLE_RATE)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    for claimed, reason in ((10**9, "1.00 of 62500.00 s"), (2**36 - 1, "cut off"), (0, "does not say how long")):
        rate_and_length = int.from_bytes(content[18:26], "big") >> 36 << 36 | claimed
        content[18:26] = rate_and_length.to_bytes(8, "big")
        with pytest.raises(AudioError, match=reason):
            read_audio(write(tmp_path / "b.flac", bytes(content)))
    assert len(read_audio(tmp_path / "b.flac", 0.25, 0.5)) == 8000  # a manifest says how long that one is


def test_memory_follows_what_is_there(tmp_path, monkeypatch):
    """Block by block is as at once, also where seeking would disturb the decoder."""
    loud = noise(20 * SAMPLE_RATE) * np.repeat(np.random.default_rng(1).random(20), SAMPLE_RATE)
    for suffix in ("mp3", "flac", "ogg"):
        soundfile.write(tmp_path / f"a.{suffix}", np.stack([loud, -loud / 2], axis=1), SAMPLE_RATE)
        expected = [read_audio(tmp_path / f"a.{suffix}", offset) for offset in (0.0, 1.5)]
        monkeypatch.setattr(reading, "BLOCK", 10_000)
        for offset, wave in zip((0.0, 1.5), expected, strict=True):
            assert torch.equal(read_audio(tmp_path / f"a.{suffix}", offset), wave)
        monkeypatch.undo()
    sizes = []
    monkeypatch.setattr(np, "concatenate", lambda parts: sizes.append([len(p) for p in parts]) or np.hstack(parts))
    soundfile.write(tmp_path / "many.wav", np.zeros((20_000, 1000)), SAMPLE_RATE)
    assert len(read_audio(tmp_path / "many.wav")) == 20_000 and max(sizes[0]) * 1000 <= reading.BLOCK


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "empty.wav").write_bytes(b"")
    reasons = {
        tmp_path / "pipe.wav": "it is not a regular file",
        "/dev/zero": "it is not a regular file",
        tmp_path / "folder.wav": "it is a directory",
        tmp_path / "empty.wav": "it is empty",
        tmp_path / "none.wav": "no such file or directory",
        tmp_path / "empty.wav" / "a.wav": "not a directory",
        tmp_path / ("long" * 100): "file name too long",
        "nul\0.wav": "no file can have such a name",
        "half \ud800.wav": "no file can have such a name",
    }
    for path, reason in reasons.items():
        with pytest.raises(AudioError, match=f"cannot be read: {reason}$") as caught:
            read_audio(path)
        assert str(caught.value).isprintable()


def test_reasons_that_a_user_understands(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.flac", noise(32000), SAMPLE_RATE)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    write(tmp_path / "zeros.flac", bytes(content))
    write(tmp_path / "text.wav", b"this is no audio file, but a text")
    write(tmp_path / "riff.wav", b"RIFF\x24\0\0\0WAVEfmt ")
    for name, place in (("zeros.flac", (1.5, 0.2)), ("zeros.flac", ()), ("text.wav", ()), ("riff.wav", ())):
        with pytest.raises(AudioError, match=f"{name} cannot be read: it is damaged, or no audio file$"):
            read_audio(tmp_path / name, *place)

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(AudioError, match="a.flac cannot be read: permission denied$"):
        read_audio(str(tmp_path / "a.flac"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_samples_that_are_not_finite(tmp_path, value):
    samples = np.stack([noise(16000), noise(16000)], axis=1)
    samples[5000, 1] = value
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    for options in ({}, {"channel": 1}, {"offset": 0.2, "duration": 0.3}):
        with pytest.raises(AudioError, match="a.wav cannot be read: it holds samples that are not finite"):
            read_audio(tmp_path / "a.wav", **options)
    for options in ({"channel": 0}, {"offset": 0.5}, {"duration": 0.3}):  # what is not read does no harm
        assert read_audio(tmp_path / "a.wav", **options).isfinite().all()
    samples[5000, 1] = 2.0**31  # integers kept as floats
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    assert LogMel().log_mel(read_audio(tmp_path / "a.wav")[None]).isfinite().all()


def test_stretches_that_a_file_does_not_hold(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(16000), SAMPLE_RATE)
    for offset in (math.nan, math.inf, -math.inf, -0.1, 1.0, 1e300):
        with pytest.raises(AudioError, match=r"a.wav cannot be read: (there is no offset|it holds no audio after)"):
            read_audio(tmp_path / "a.wav", offset)
    for duration in (math.nan, math.inf, -1.0, 0.0):
        with pytest.raises(AudioError, match="there is no .* duration"):
            read_audio(tmp_path / "a.wav", 0.0, duration)
    for channel in (-1, 1, 10**9, math.nan):
        with pytest.raises(AudioError, match="it has no channel"):
            read_audio(tmp_path / "a.wav", channel=channel)
    for offset, duration in ((0.0, 1.2), (0.5, 0.7), (0.9, 0.3), (0.0, 1e300)):
        with pytest.raises(AudioError, match=rf"it holds {1 - offset:.2f} of {duration:.2f} s after {offset:.2f} s"):
            read_audio(tmp_path / "a.wav", offset, duration)
    assert len(read_audio(tmp_path / "a.wav", 0.0, 1.05)) == 16000  # rounding, as manifests have it


@pytest.mark.parametrize("rate", [1000, 1009, 15_991, 16_001, 22_255, 47_999, 192_001, 767_999, 768_000])
def test_any_rate_in_bounded_time_at_the_right_pitch(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(1.3, rate, 220.0), rate, subtype="FLOAT")
    started = time.process_time()
    wave = read_audio(tmp_path / "a.wav")
    assert time.process_time() - started < 20  # 47 s before
    assert abs(len(wave) - 1.3 * SAMPLE_RATE) <= 8
    expected = torch.from_numpy(tone(1.3, SAMPLE_RATE, 220.0))
    difference = (wave[2000:18000] - expected[2000:18000]).abs().max()
    assert difference < 0.01  # a pitch 0.01 % off would be wrong by 0.5 x 2 pi 220 x 1.1 s x 0.0001 = 0.08 at the end


def test_resampling_a_long_recording_leaves_no_seams():
    rate = 8009
    wave, expected = (torch.from_numpy(tone(30.0, r, 220.0)) for r in (rate, SAMPLE_RATE))
    assert (reading.resample(wave, rate)[2000:-2000] - expected[2000:-2000]).abs().max() < 1e-3


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2**31 - 1])
def test_hostile_rates_are_refused(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", noise(100), rate)
    with pytest.raises(AudioError, match=f"its rate of {rate} Hz is not between 1000 and 768000"):
        read_audio(tmp_path / "a.wav")
