"""Audio in: formats and rates, files damaged, joined or never finished, channels that cancel each other."""

import math
import os
import struct
import time
from contextlib import suppress

import numpy as np
import pytest
import soundfile
import torch

from common.features import LogMel
from common.running import audio as reading
from common.running.audio import FORMATS, SAMPLE_RATE, AudioError, audio_seconds, read_audio


def tone(seconds: float, rate: int = SAMPLE_RATE, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(
        np.float32
    )


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
    soundfile.write(
        tmp_path / "a.wav", np.stack([left, right], axis=1), SAMPLE_RATE, subtype="FLOAT"
    )
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
    soundfile.write(
        tmp_path / "good.flac", np.random.default_rng(0).standard_normal(32000) / 10, SAMPLE_RATE
    )
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
    for claimed, reason in (
        (10**9, "1.00 of 62500.00 s"),
        (2**36 - 1, "cut off"),
        (0, "does not say how long"),
    ):
        rate_and_length = int.from_bytes(content[18:26], "big") >> 36 << 36 | claimed
        content[18:26] = rate_and_length.to_bytes(8, "big")
        with pytest.raises(AudioError, match=reason):
            read_audio(write(tmp_path / "b.flac", bytes(content)))
    assert (
        len(read_audio(tmp_path / "b.flac", 0.25, 0.5)) == 8000
    )  # a manifest says how long that one is


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
    monkeypatch.setattr(
        np, "concatenate", lambda parts: sizes.append([len(p) for p in parts]) or np.hstack(parts)
    )
    soundfile.write(tmp_path / "many.wav", np.zeros((20_000, 1000)), SAMPLE_RATE)
    assert (
        len(read_audio(tmp_path / "many.wav")) == 20_000 and max(sizes[0]) * 1000 <= reading.BLOCK
    )


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
    for name, place in (
        ("zeros.flac", (1.5, 0.2)),
        ("zeros.flac", ()),
        ("text.wav", ()),
        ("riff.wav", ()),
    ):
        with pytest.raises(
            AudioError, match=f"{name} cannot be read: it is damaged, or no audio file$"
        ):
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
        with pytest.raises(
            AudioError, match="a.wav cannot be read: it holds samples that are not finite"
        ):
            read_audio(tmp_path / "a.wav", **options)
    for options in (
        {"channel": 0},
        {"offset": 0.5},
        {"duration": 0.3},
    ):  # what is not read does no harm
        assert read_audio(tmp_path / "a.wav", **options).isfinite().all()
    samples[5000, 1] = 2.0**31  # integers kept as floats
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    assert LogMel().log_mel(read_audio(tmp_path / "a.wav")[None]).isfinite().all()


def test_stretches_that_a_file_does_not_hold(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(16000), SAMPLE_RATE)
    for offset in (math.nan, math.inf, -math.inf, -0.1, 1.0, 1e300):
        with pytest.raises(
            AudioError, match=r"a.wav cannot be read: (there is no offset|it holds no audio after)"
        ):
            read_audio(tmp_path / "a.wav", offset)
    for duration in (math.nan, math.inf, -1.0, 0.0):
        with pytest.raises(AudioError, match="there is no .* duration"):
            read_audio(tmp_path / "a.wav", 0.0, duration)
    for channel in (-1, 1, 10**9, math.nan):
        with pytest.raises(AudioError, match="it has no channel"):
            read_audio(tmp_path / "a.wav", channel=channel)
    for offset, duration in ((0.0, 1.2), (0.5, 0.7), (0.9, 0.3), (0.0, 1e300)):
        with pytest.raises(
            AudioError, match=rf"it holds {1 - offset:.2f} of {duration:.2f} s after {offset:.2f} s"
        ):
            read_audio(tmp_path / "a.wav", offset, duration)
    assert len(read_audio(tmp_path / "a.wav", 0.0, 1.05)) == 16000  # rounding, as manifests have it


@pytest.mark.parametrize(
    "rate", [1000, 1009, 15_991, 16_001, 22_255, 47_999, 192_001, 767_999, 768_000]
)
def test_any_rate_in_bounded_time_at_the_right_pitch(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(1.3, rate, 220.0), rate, subtype="FLOAT")
    started = time.process_time()
    wave = read_audio(tmp_path / "a.wav")
    assert time.process_time() - started < 20  # 47 s before
    assert abs(len(wave) - 1.3 * SAMPLE_RATE) <= 8
    expected = torch.from_numpy(tone(1.3, SAMPLE_RATE, 220.0))
    difference = (wave[2000:18000] - expected[2000:18000]).abs().max()
    assert (
        difference < 0.01
    )  # a pitch 0.01 % off would be wrong by 0.5 x 2 pi 220 x 1.1 s x 0.0001 = 0.08 at the end


def test_resampling_a_long_recording_leaves_no_seams():
    rate = 8009
    wave, expected = (torch.from_numpy(tone(30.0, r, 220.0)) for r in (rate, SAMPLE_RATE))
    assert (reading.resample(wave, rate)[2000:-2000] - expected[2000:-2000]).abs().max() < 1e-3


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2**31 - 1])
def test_hostile_rates_are_refused(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", noise(100), rate)
    with pytest.raises(AudioError, match=f"its rate of {rate} Hz is not between 1000 and 768000"):
        read_audio(tmp_path / "a.wav")


# ------------------------------------------------------------- several recordings one behind the other

LOSSY = [("ogg", "OGG", "VORBIS"), ("opus", "OGG", "OPUS"), ("mp3", "MP3", "MPEG_LAYER_III")]
PLAIN = [
    ("WAV", "PCM_16"), ("WAVEX", "PCM_16"), ("RF64", "PCM_16"), ("W64", "PCM_16"),
    ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("NIST", "PCM_16"), ("FLAC", "PCM_16"),
]  # fmt: skip


def speech(seconds: float, rate: int = SAMPLE_RATE, seed: int = 0) -> np.ndarray:
    """Quiet and loud by turns, as speech is, so that a variable bit rate varies."""
    times = np.arange(round(seconds * rate)) / rate
    hiss = np.random.default_rng(seed).standard_normal(len(times))
    return 0.02 * hiss * (1 + np.sin(4 * np.pi * times)) ** 3 + 0.2 * np.sin(600 * np.pi * times)


def without_tag(content: bytes) -> bytes:
    """An MP3 without its first frame, which tells how many follow: as written into a pipe."""
    tag = max(content.find(b"Xing"), content.find(b"Info"))
    return content[content.index(content[:2], tag) :]


def concatenated(waves: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(waves)


@pytest.mark.parametrize("suffix, form, subtype", LOSSY)
@pytest.mark.parametrize("rates", [(16_000,), (22_050,), (44_100,)])
def test_all_recordings_of_a_file_are_read(tmp_path, suffix, form, subtype, rates):
    (rate,) = rates if subtype != "OPUS" else (48_000,)
    paths = [tmp_path / f"{i}.{suffix}" for i in range(3)]
    for i, path in enumerate(paths):
        samples = speech(2.0 + i / 3, rate, seed=i)
        soundfile.write(path, samples, rate, format=form, subtype=subtype)
    content = b"".join(path.read_bytes() for path in paths)
    joined = write(tmp_path / f"joined.{suffix}", content)
    assert audio_seconds(joined) == pytest.approx(sum(map(audio_seconds, paths)), abs=1e-3)
    wave = read_audio(joined)
    expected = concatenated([read_audio(path) for path in paths])
    assert abs(len(wave) - len(expected)) <= 3
    if rate == SAMPLE_RATE:
        assert torch.equal(wave, expected)
        across = read_audio(joined, 1.5, 1.0)  # from the first into the second
        assert torch.allclose(across, expected[24_000:40_000], atol=1e-5)
        assert torch.allclose(read_audio(joined, 4.5, 0.5), expected[72_000:80_000], atol=1e-5)


def test_the_same_recording_twice_is_heard_twice(tmp_path):
    for suffix, form, subtype in LOSSY:
        path = tmp_path / f"a.{suffix}"
        soundfile.write(path, speech(1.5), SAMPLE_RATE, format=form, subtype=subtype)
        twice = write(tmp_path / f"twice.{suffix}", 2 * path.read_bytes())
        assert torch.equal(read_audio(twice), read_audio(path).repeat(2))


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_joined_mp3_with_and_without_tags(tmp_path, mode):
    lengths, contents = (5.0, 4.0), []
    for seed, seconds in enumerate(lengths):
        path = tmp_path / f"{seed}.mp3"
        samples = speech(seconds, seed=seed)
        samples[: len(samples) // 2] *= 1e-3  # the first frames are small: their rate says little
        soundfile.write(path, samples, SAMPLE_RATE, bitrate_mode=mode, compression_level=0.5)
        contents.append(path.read_bytes())
    bare = [without_tag(content) for content in contents]
    assert read_seconds(tmp_path, bare[0]) == pytest.approx(5.0, abs=0.1)
    id3v1 = b"TAG".ljust(128, b"\0")
    id3v2 = (
        b"ID3\x04\0\0\0\0\x20\0" + b"\xff\xfb\x90\xc4" * 1024
    )  # 4096 bytes that look like frames
    for first in (contents[0], bare[0], id3v2 + contents[0], contents[0] + id3v1):
        for second in (contents[1], bare[1], id3v2 + contents[1], contents[1] + id3v1):
            assert read_seconds(tmp_path, first + second) == pytest.approx(9.0, abs=0.15)
    unfinished = bytearray(contents[0])
    tag = max(unfinished.find(b"Xing"), unfinished.find(b"Info"))
    unfinished[tag + 8 : tag + 16] = bytes(8)  # no frames and no bytes are announced
    assert read_seconds(tmp_path, bytes(unfinished)) == pytest.approx(5.0, abs=0.1)


def read_seconds(folder, content: bytes) -> float:
    path = write(folder / "joined.mp3", content)
    seconds = len(read_audio(path)) / SAMPLE_RATE
    assert audio_seconds(path) == pytest.approx(seconds, abs=0.01)
    return seconds


def test_recordings_that_differ_or_are_cut_off_are_refused(tmp_path):
    for suffix, form, subtype in LOSSY:
        parts = []
        for rate, channels in ((8000, 1), (16_000, 1), (16_000, 2)):
            path = tmp_path / f"{rate}-{channels}.{suffix}"
            samples = np.stack([speech(2.0, rate)] * channels, axis=1)
            soundfile.write(path, samples, rate, format=form, subtype=subtype)
            parts.append(path.read_bytes())
        for other in (parts[0], parts[2]):
            path = write(tmp_path / f"mixed.{suffix}", parts[1] + other)
            with pytest.raises(AudioError, match="several recordings, of different rates or chann"):
                read_audio(path)
        halves = [parts[1][: len(parts[1]) // 2 - less] for less in (0, 36, 100)]
        for content in [half + parts[1] for half in halves] + [parts[1] + halves[0]]:
            path = write(tmp_path / f"cut.{suffix}", content)
            with pytest.raises(AudioError, match="it is cut off"):
                read_audio(path)


@pytest.mark.parametrize("form, subtype", PLAIN)
def test_joined_files_of_plain_formats_are_refused(tmp_path, form, subtype):
    path = tmp_path / "a"
    soundfile.write(path, speech(1.0)[:-1], SAMPLE_RATE, format=form, subtype=subtype)
    joined = write(tmp_path / "joined", 2 * path.read_bytes())
    with pytest.raises(AudioError, match="joined cannot be read: it holds several recordings one"):
        read_audio(joined)
    other = write(tmp_path / "other", path.read_bytes() + b"something else" * 100)
    assert len(read_audio(path)) == SAMPLE_RATE - 1
    if form not in ("FLAC", "W64", "NIST"):
        assert len(read_audio(other)) == SAMPLE_RATE - 1


# ------------------------------------------------------------------------------------------- segments

FORMATS_OF_SEGMENTS = [
    ("WAV", "GSM610"), ("W64", "GSM610"), ("AIFF", "GSM610"), ("WAV", "G721_32"), ("AU", "G721_32"),
    ("AU", "G723_24"), ("AU", "G723_40"), ("WAV", "NMS_ADPCM_16"), ("WAV", "NMS_ADPCM_24"),
    ("WAV", "NMS_ADPCM_32"), ("WAV", "MS_ADPCM"), ("WAV", "IMA_ADPCM"), ("AIFF", "IMA_ADPCM"),
    ("AIFF", "DWVW_16"), ("AIFF", "DWVW_24"), ("CAF", "ALAC_16"), ("WAV", "ULAW"), ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"), ("OGG", "OPUS"),
]  # fmt: skip


@pytest.mark.parametrize("form, subtype", FORMATS_OF_SEGMENTS)
def test_a_segment_has_the_samples_of_the_whole_file(tmp_path, form, subtype):
    path = tmp_path / "a"
    rate = 8000  # the last page of Vorbis has 1.3 s
    soundfile.write(path, speech(7.9, rate)[:63_001], rate, format=form, subtype=subtype)
    whole = decoded(path)
    assert len(whole) >= 63_000
    for start in (1, 160, 8000, 30_001, 55_000, 62_900):
        assert np.array_equal(decoded(path, start, 5000), whole[start : start + 5000])


def decoded(path, start: int = 0, wanted: int = 1 << 40) -> np.ndarray:
    """Samples of the first channel, not resampled."""
    with reading.open_audio(path) as recording:
        blocks = recording.blocks(start, min(wanted, recording.frames - start))
        return np.concatenate([block[:, 0] for block in blocks])


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
@pytest.mark.parametrize("level", [0.0, 0.99])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_segment_of_an_mp3_begins_as_it_does_in_the_whole_file(
    tmp_path, capfd, mode, level, rate
):
    """Its frames borrow bytes from those before, and its decoder then complains on stderr."""
    path = tmp_path / "a.mp3"
    soundfile.write(path, speech(50, rate), rate, bitrate_mode=mode, compression_level=level)
    whole = decoded(path)
    for seconds in (0.1, 5.01, 11.3, 29.9, 41.07, 49.5):
        start = round(seconds * rate)
        segment = decoded(path, start, 2000)
        assert np.abs(segment - whole[start : start + 2000]).max() < (
            1e-6 if seconds > 30 else 1e-12
        )
    assert capfd.readouterr() == ("", "")


def test_the_decoders_own_lines_do_not_reach_the_terminal(tmp_path, capfd):
    soundfile.write(tmp_path / "a.mp3", speech(5), SAMPLE_RATE, compression_level=0.99)
    content = bytearray((tmp_path / "a.mp3").read_bytes())
    content[4000:4500] = bytes(500)
    for other in (
        bytes(content),
        bytes(content) + bytes(2000) + bytes(content),
        bytes(content[:3000]),
    ):
        path = write(tmp_path / "b.mp3", other)
        for offset in (0.0, 1.0, 3.0):
            with suppress(AudioError):
                read_audio(path, offset)
    os.write(2, b"this is said\n")
    assert capfd.readouterr() == ("", "this is said\n")


# ------------------------------------------------------------------- headers that were never finished


def put(content: bytes, position: int, number: bytes) -> bytes:
    return content[:position] + number + content[position + len(number) :]


def unfinished(form: str, content: bytes) -> list[bytes]:
    """The file as programs leave it that are killed, or write into a pipe."""
    data = content.find(b"data") + 4
    if form in ("WAV", "WAVEX"):
        audio = put(content, data, bytes(4))
        return [audio, put(audio, 4, bytes(4)), put(audio, 4, struct.pack("<I", data - 4))]
    if form == "RF64":
        sizes = put(content, 20, bytes(24))
        return [put(content, 28, bytes(8)), sizes, put(sizes, data, bytes(4))]
    if form == "W64":
        audio = put(content, data + 12, bytes(8))
        return [audio, put(audio, 16, bytes(8)), put(audio, data + 12, struct.pack("<Q", 24))]
    if form == "AIFF":
        audio, count = content.find(b"SSND") + 4, content.find(b"COMM") + 10
        nothing = put(put(content, audio, bytes(4)), count, bytes(4))
        empty = put(nothing, audio, struct.pack(">I", 8))
        return [nothing, put(nothing, 4, bytes(4)), empty, put(empty, 4, bytes(4))]
    if form == "AU":
        return [put(content, 8, bytes(4)), put(content, 8, b"\xff" * 4)]
    if form == "CAF":
        return [put(content, data, number) for number in (bytes(8), b"\xff" * 8, bytes(7) + b"\4")]
    return [content.replace(b"sample_count -i 16000", b"sample_count -i 00000")]


@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST"])
@pytest.mark.parametrize("quiet", [False, True])
def test_a_header_that_was_never_finished(tmp_path, form, quiet):
    samples = np.zeros(16_000) if quiet else noise(16_000)
    soundfile.write(tmp_path / "a", samples, SAMPLE_RATE, format=form, subtype="PCM_16")
    whole = read_audio(tmp_path / "a")
    for content in unfinished(form, (tmp_path / "a").read_bytes()):
        path = write(tmp_path / "b", content)
        assert torch.equal(read_audio(path), whole)
        assert audio_seconds(path) == 1.0
        assert torch.equal(read_audio(path, 0.25, 0.5), whole[4000:12_000])


@pytest.mark.parametrize("subtype", ["GSM610", "IMA_ADPCM", "MS_ADPCM", "G721_32", "ULAW", "FLOAT"])
def test_a_compressed_wav_that_was_never_finished(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", speech(2.0), SAMPLE_RATE, subtype=subtype)
    whole = read_audio(tmp_path / "a.wav")
    for content in unfinished("WAV", (tmp_path / "a.wav").read_bytes()):
        wave = read_audio(write(tmp_path / "b.wav", content))
        assert torch.equal(wave[: len(whole)], whole) and len(wave) - len(whole) < 400


def test_what_is_really_empty_is_said_to_be(tmp_path):
    for form in ("WAV", "RF64", "W64", "AIFF", "AU", "CAF"):
        path = tmp_path / "a"
        soundfile.write(path, np.zeros(0), SAMPLE_RATE, format=form, subtype="PCM_16")
        listing = b"LIST\x04\0\0\0INFO" if form in ("WAV", "RF64") else b""
        for content in (path.read_bytes(), path.read_bytes() + listing):
            with pytest.raises(
                AudioError, match="b cannot be read: it (holds no audio|is damaged)"
            ):
                read_audio(write(tmp_path / "b", content))


HOSTILE = [
    b"RIFF\xff\xff\xff\xffWAVE" + b"LIST\0\0\0\0" * 500_000,
    b"caff\0\1\0\0" + b"free\0\0\0\0\0\0\0\0" * 500_000,
    b"OggS" * 500_000,
    b"ID3\x04\0\0\x7f\x7f\x7f\x7f",
    b"\xff\xfb\x90\xc4" * 100_000,
    b"\xff" * 1_000_000,
    b"NIST_1A\n   1024\n"
    + b"channel_count -i 9\nsample_n_bytes -i 9\nsample_count -i "
    + b"9" * 12,
    *(kind + b"\xff" * 100 for kind in (b"riff", b"RF64", b"FORM", b".snd", b"caff\0\1\0\0data")),
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_sizes_are_refused_in_bounded_time(tmp_path, content):
    started = time.process_time()
    with pytest.raises(AudioError, match="a cannot be read"):
        read_audio(write(tmp_path / "a", content))
    assert time.process_time() - started < 10


# ---------------------------------------------------------------------- channels that cancel each other


def heard(path, samples: np.ndarray, *place) -> tuple[torch.Tensor, list[str]]:
    """What is read of some samples (n, channels), and what is said about them."""
    soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")
    said: list[str] = []
    return read_audio(path, *place, say=said.append), said


CANCELLING = [  # (channels made of a voice and hiss, the loudest)
    (lambda voice, hiss: (voice, -voice), 0),
    (lambda voice, hiss: (voice, -0.8 * voice), 0),
    (lambda voice, hiss: (0.9 * voice, -voice), 1),
    (lambda voice, hiss: (hiss - voice, 1.1 * voice), 1),
    (lambda voice, hiss: (1.1 * voice, -np.roll(voice, 1)), 0),
    (lambda voice, hiss: (1.1 * voice + 0.3, 0.3 - voice), 0),
    (lambda voice, hiss: (0 * voice, -1.1 * voice, voice), 1),
    (lambda voice, hiss: (hiss, 0.9 * voice, -voice), 2),
]
HARMLESS = [
    lambda voice, hiss: (voice,),
    lambda voice, hiss: (voice, voice),
    lambda voice, hiss: (voice, 0 * voice),
    lambda voice, hiss: (voice, 0.1 * voice),
    lambda voice, hiss: (voice, -0.3 * voice),
    lambda voice, hiss: (voice, hiss),
    lambda voice, hiss: (0 * voice, 0 * voice),
    lambda voice, hiss: tuple(np.roll(hiss, 7 * i) for i in range(50)),
]


@pytest.fixture
def voice_and_hiss():
    times = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    voice = 0.2 * np.sin(600 * np.pi * times) * (1 + np.sin(6 * np.pi * times))
    hiss = 0.02 * np.random.default_rng(5).standard_normal(len(times))
    return voice.astype(np.float32), hiss.astype(np.float32)


@pytest.mark.parametrize("channels_of, loudest", CANCELLING)
def test_of_channels_that_cancel_each_other_the_louder_is_read(
    tmp_path, voice_and_hiss, channels_of, loudest
):
    channels = np.stack(channels_of(*voice_and_hiss), axis=1)
    path = tmp_path / "a.wav"
    wave, said = heard(path, channels)
    assert torch.equal(wave, torch.from_numpy(channels[:, loudest]))
    assert said == [f"{path}: its channels cancel each other, so channel {loudest} is read alone"]
    wave, said = heard(path, channels, 0.5, 1.0)
    assert torch.equal(wave, torch.from_numpy(channels[8000:24_000, loudest])) and len(said) == 1
    wave, said = heard(path, channels, 0.0, None, 1)  # it was named
    assert torch.equal(wave, torch.from_numpy(channels[:, 1])) and not said


@pytest.mark.parametrize("channels_of", HARMLESS)
def test_other_channels_are_averaged(tmp_path, voice_and_hiss, channels_of):
    channels = np.stack(channels_of(*voice_and_hiss), axis=1)
    wave, said = heard(tmp_path / "a.wav", channels)
    assert np.allclose(wave, channels.mean(axis=1), atol=1e-6) and not said


def test_whoever_reads_one_file_is_told_that_its_channels_cancel(tmp_path, capfd, voice_and_hiss):
    voice, _ = voice_and_hiss
    soundfile.write(tmp_path / "a.flac", np.stack([voice, -voice], axis=1), SAMPLE_RATE)
    assert read_audio(tmp_path / "a.flac").std() > 0.1
    assert capfd.readouterr().err.count("a.flac: its channels cancel each other, so channel") == 1
