"""Audio files to waves: any part of a file, any channel, any rate.

    file --containers.parts_of--> recordings --soundfile--> blocks (n, channels)
         --mix--> (samples,) --resample--> (samples,) float32 in [-1, 1] at 16 kHz

A file is read whole and right, or refused with a sentence: AudioError. A segment has
the samples that it has in the whole file.
"""

from __future__ import annotations

import math
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional as AF
from torch import Tensor, nn

from common.errors import note
from common.features import SAMPLE_RATE
from common.running.containers import JOINED, AudioError, Window, holds_more_flac, parts_of
from common.running.mpeg import looks_like_mpeg
from common.text import printable

# Formats that tell where they end.
FORMATS = "WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC", "OGG", "MP3"
FILE_RATES = 1_000, 768_000  # Hz, the lowest and the highest rate of a file [choice]
LOUDEST = 1e10  # full scale is 1, or 2^31 for integers as floats; (400 x 1e10)^2 fits fp32 [choice]
BLOCK = 1 << 22  # samples decoded at a time, all channels together: 16 MB
STREAMED = 0x7FFF0000  # bytes; programs that write into a pipe claim so much or more
SIZED = "data|SSND|BODY|Data Size|riff|Riff size"  # what libsndfile's log has the sizes of
CLAIMED = re.compile(rf"^ *(?:{SIZED}) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
# Of channels that have nothing in common the mix has 1 / channels of their mean power, of equal
# ones all of it. Where it has less than a tenth of the former, they cancel each other [choice].
CANCELLED = 0.1
# A decoder of these formats begins so many seconds before what is wanted: what it does there
# depends on what was before. An MP3's frames borrow bytes from up to 0.3 s before (beyond 30 s
# sums have other roundings, 1e-7 of full scale), Opus settles within 0.1 s.
RUN_UP = {"MPEG_LAYER_III": 30.0, "MPEG_LAYER_II": 30.0, "MPEG_LAYER_I": 30.0, "OPUS": 1.0}
# samples: after a seek into the last page of a Vorbis stream libsndfile gives wrong ones. A page
# ends at most 255 packets of at most 4096 samples.
VORBIS_PAGE = 255 * 4096

UNTOLD = "it does not say how long it is: write it anew, or give its duration in a manifest"


class Recording:
    """An open audio file. Several recordings in it count as one.

    Its blocks can be read once. Raises AudioError if it is no file that we read.
    """

    def __init__(self, files: list[soundfile.SoundFile], descriptor: int):
        self.descriptor = descriptor
        first = files[0]
        for file in files:
            _check(file)
            if (file.samplerate, file.channels) != (first.samplerate, first.channels):
                raise AudioError("it holds several recordings, of different rates or channels")
        self.files = files
        self.rate = first.samplerate
        self.channels = first.channels
        self.format = first.format
        self.frames = sum(file.frames for file in files)  # in samples of each channel

    def length(self) -> int:
        """The number of samples in each channel.

        Raises AudioError for a FLAC file that was written into a pipe: it is unknown.
        """
        if self.frames >= 1 << 62:
            raise AudioError(UNTOLD)
        return self.frames

    def blocks(self, start: int, wanted: int) -> Iterator[np.ndarray]:
        """Yields at most `wanted` samples from `start` on, (n, channels) float32."""
        if self.format == "FLAC" and holds_more_flac(self.descriptor):
            raise AudioError(JOINED)
        for file in self.files:
            here = min(wanted, file.frames - start)
            if here > 0:
                yield from _blocks_of(file, start, here)
                wanted -= here
            start = max(0, start - file.frames)


def _check(file: soundfile.SoundFile) -> None:
    """Raises AudioError if a file is none that we read, or holds nothing."""
    low, high = FILE_RATES
    if file.format not in FORMATS:
        raise AudioError(f"it is {file.format_info}, not one of {', '.join(FORMATS)}")
    if not low <= file.samplerate <= high:
        raise AudioError(f"its rate of {file.samplerate} Hz is not between {low} and {high}")
    if file.frames <= 0:
        raise AudioError("it holds no audio")


def _blocks_of(file: soundfile.SoundFile, start: int, wanted: int) -> Iterator[np.ndarray]:
    """Yields `wanted` samples of a recording from `start` on, (n, channels) float32.

    Memory grows with the samples in the file, not with what a header claims. Raises
    AudioError if clearly less is there (by 0.1 s and by 1 %). Except in MP3, whose
    encoders may count a frame too many, every sample that is missing is an error.
    """
    begin = _where_decoding_begins(file, start)
    if begin:
        with _silent(file.subtype.startswith("MPEG")):
            file.seek(begin)
    # Else soundfile seeks after each block, after which an MP3 is decoded differently.
    file.seekable = lambda: False
    unwanted = start - begin
    left = wanted
    size = max(1, BLOCK // file.channels)
    while left:
        with _silent(file.subtype.startswith("MPEG")):
            block = file.read(min(size, unwanted + left), dtype="float32", always_2d=True)
        if not len(block):
            break
        dropped = min(unwanted, len(block))
        unwanted -= dropped
        left -= len(block) - dropped
        if dropped < len(block):
            yield block[dropped:]
    found = (wanted - left) / file.samplerate
    expected = wanted / file.samplerate
    if _clearly_less(found, expected) or (left and file.format != "MP3"):
        raise AudioError(f"it is cut off: {found:.2f} of {expected:.2f} s could be read")


def _where_decoding_begins(file: soundfile.SoundFile, start: int) -> int:
    """The sample from which a file is decoded, so that those from `start` on are right.

    It is 0 for formats that cannot be entered in the middle, since each sample builds
    on the one before. libsndfile knows this of GSM, G721, G723 and NMS, but not of
    DWVW, which is named here.
    """
    if not file.seekable() or file.subtype.startswith("DWVW"):
        return 0
    if file.subtype == "VORBIS":
        start = min(start, file.frames - VORBIS_PAGE)
    return max(0, start - round(RUN_UP.get(file.subtype, 0) * file.samplerate))


def _clearly_less(seconds: float, expected: float) -> bool:
    return expected - seconds > max(0.1, 0.01 * expected)


_stderr_is_ours = threading.Lock()


@contextmanager
def _silent(noisy: bool) -> Iterator[None]:
    """Inside the block, nothing that a noisy decoder writes reaches the terminal.

    libmpg123 has its own words about damaged frames, and after a seek about sound ones.
    It writes them to file descriptor 2, and soundfile cannot tell it to be quiet. So
    what Python writes there is lost, too.
    """
    if not noisy:
        yield
        return
    with _stderr_is_ours, ExitStack() as stack:
        try:
            kept = os.dup(2)
        except OSError:  # it is closed: nobody can read it
            kept = None
        if kept is not None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
        yield


@contextmanager
def open_audio(path: str | Path) -> Iterator[Recording]:
    """An audio file whose header has been checked.

    Raises AudioError, also where reading fails inside the block. Only regular files are
    opened: a pipe or a device may never answer.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            directory = stat.S_ISDIR(status.st_mode)
            raise AudioError("it is a directory" if directory else "it is not a regular file")
        if not status.st_size:
            raise AudioError("it is empty")
        with open(path, "rb") as raw, ExitStack() as stack:
            yield Recording(_open_parts(raw.fileno(), stack), raw.fileno())
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


def _open_parts(descriptor: int, stack: ExitStack) -> list[soundfile.SoundFile]:
    """Every recording in an open file, opened until the stack ends.

    Raises AudioError and RuntimeError.
    """
    parts = parts_of(descriptor)
    beginning = os.pread(descriptor, 22, 0)
    noisy = looks_like_mpeg(beginning) or beginning[20:] == b"U\0"  # MP3 inside WAV
    sources = [Window(descriptor, part) for part in parts] or [descriptor]
    files = []
    for source in sources:
        with _silent(noisy):
            file = soundfile.SoundFile(source, closefd=False)
        files.append(stack.enter_context(file))
    if not parts and _is_cut_off(files[0], descriptor):
        raise AudioError("it is cut off: its header says that it is longer")
    return files


def _is_cut_off(file: soundfile.SoundFile, descriptor: int) -> bool:
    """Whether a file ends sooner than its header says.

    FLAC and MP3 show that only when they are read.

    libsndfile reads such a file as if it were whole, and notes in its log which chunk
    claims more bytes than there are.
    """
    if file.format == "NIST":
        claimed = re.search(rb"sample_count -i (\d+)", os.pread(descriptor, 1024, 0))
        return claimed is not None and int(claimed[1]) > file.frames
    sizes = [map(int, found) for found in CLAIMED.findall(file.extra_info)]
    return any(present < claimed < STREAMED for claimed, present in sizes)


def audio_seconds(path: str | Path) -> float:
    """The length of an audio file, as its header has it. Raises AudioError."""
    with open_audio(path) as recording:
        return recording.length() / recording.rate


def read_audio(
    path: str | Path,
    offset: float = 0.0,
    duration: float | None = None,
    channel: int | None = None,
    say: Callable[[str], None] = note,
) -> Tensor:
    """Reads `duration` seconds (all: None) from `offset` seconds on, as mono 16 kHz.

    It reads WAV, FLAC, OGG, MP3 and the other FORMATS at any rate from 1 to 768 kHz. A
    named channel (0, 1, …) is read alone. Without one the channels are averaged, unless
    they cancel each other: then the loudest is read alone, and `say` gets a sentence
    about it. Returns (samples,) float32. Raises AudioError, also where the file holds
    clearly less (by 0.1 s and by 1 %) than `duration`, or samples that are not finite.
    """
    mono, rate, loudest = _read(path, offset, duration, channel)
    if loudest is not None:
        name = printable(path)
        say(f"{name}: its channels cancel each other, so channel {loudest} is read alone")
        mono, _, _ = _read(path, offset, duration, loudest)
    return resample(torch.from_numpy(mono), rate)


def _read(
    path: str | Path,
    offset: float,
    duration: float | None,
    channel: int | None,
) -> tuple[np.ndarray, int, int | None]:
    """As `read_audio`: samples at the file's rate, that rate, the channel of `mix`."""
    with open_audio(path) as recording:
        rate = recording.rate
        if not 0 <= offset < math.inf or not (duration is None or 0 < duration < math.inf):
            raise AudioError(f"there is no offset of {offset} s with a duration of {duration} s")
        if channel is not None and channel not in range(recording.channels):
            count = recording.channels
            raise AudioError(f"it has no channel {channel} (it has {count}, counted from 0)")
        start = round(min(offset * rate, recording.frames))
        if duration is None:
            wanted = recording.length() - start
        else:
            wanted = round(min(duration * rate, recording.frames - start))
        mono, loudest = mix(recording.blocks(start, wanted), recording.channels, channel)
        if not len(mono):
            raise AudioError(f"it holds no audio after {offset:.2f} s")
        seconds = len(mono) / rate
        if duration is not None and _clearly_less(seconds, duration):
            raise AudioError(f"it holds {seconds:.2f} of {duration:.2f} s after {offset:.2f} s")
        if not np.abs(mono).max() <= LOUDEST:
            raise AudioError("it holds samples that are not finite, or too large to be audio")
    return mono, rate, loudest


def mix(
    blocks: Iterable[np.ndarray],
    channels: int,
    channel: int | None,
) -> tuple[np.ndarray, int | None]:
    """Blocks (n, channels) as one channel (samples,) float32: their mean, or `channel`.

    The second answer is the loudest channel if the channels cancel each other in the
    mean, else None.
    """
    parts = [np.zeros(0, dtype=np.float32)]
    of_channels = np.zeros((2, channels))
    of_mix = np.zeros((2, 1))
    with np.errstate(over="ignore", invalid="ignore"):
        for block in blocks:
            mixed = block.mean(axis=1) if channel is None else block[:, channel].copy()
            parts.append(mixed)
            if channel is None and channels > 1:
                of_channels += _sums(block)
                of_mix += _sums(mixed[:, None])
        mono = np.concatenate(parts)
        power = _power(of_channels, len(mono))
        cancelled = _power(of_mix, len(mono)) * channels < CANCELLED * power.mean()
    return mono, int(power.argmax()) if cancelled else None


def _sums(block: np.ndarray) -> np.ndarray:
    """The sums of the samples (n, channels) and of their squares: (2, channels) in
    double precision."""
    squares = np.einsum("nc,nc->c", block, block, dtype=np.float64)
    return np.stack([block.sum(axis=0, dtype=np.float64), squares])


def _power(sums: np.ndarray, samples: int) -> np.ndarray:
    """The variance (channels,) of each channel: a constant offset adds nothing."""
    mean, square = sums / max(1, samples)
    return square - mean**2


def resample(wave: Tensor, rate: int) -> Tensor:
    """(samples,) at `rate` Hz to 16 kHz; the pitch is exact at every rate.

    torchaudio's filters have as many taps and phases as both rates have left after
    division by their common factor: 2 for 8 kHz, 441 for 44.1 kHz, but 47,999 for
    47,999 Hz. Above 2,000 we resample by FFT, in stretches of 8 seconds with a second
    before and behind: whole seconds have whole numbers of samples at both rates.
    """
    if max(rate, SAMPLE_RATE) // math.gcd(rate, SAMPLE_RATE) <= 2000:
        return AF.resample(wave, rate, SAMPLE_RATE)
    stretches = nn.functional.pad(wave, (rate, 9 * rate)).unfold(
        0, 10 * rate, 8 * rate
    )  # (n, 10 s)
    spectra = (torch.fft.rfft(stretch) for stretch in stretches)
    waves = [
        torch.fft.irfft(spectrum, 10 * SAMPLE_RATE)[SAMPLE_RATE:-SAMPLE_RATE]
        for spectrum in spectra
    ]
    return torch.cat(waves)[: math.ceil(len(wave) * SAMPLE_RATE / rate)] * (SAMPLE_RATE / rate)
