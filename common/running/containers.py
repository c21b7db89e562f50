"""The recordings in an audio file: where they begin and end, and if they are whole.

    open file --parts_of--> (Part, ...) --Window--> files of their own for libsndfile

libsndfile decodes audio, but it reads only the first recording of a file, and believes
every length in a header. This module looks for more recordings behind the first one
(chained Ogg, joined MP3), for lengths that were never written, and for an end that is
missing. It decodes nothing.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from common.errors import UserError
from common.running import mpeg

BEGINNINGS = b"RIFF", b"RF64", b"FORM", b".snd", b"caff", b"riff", b"NIST_1A"  # of plain formats
JOINED = (
    "it holds several recordings one behind the other, and only the first of them can be read: "
    "write each into a file of its own"
)
UNKNOWN = 0xFFFFFFFF  # a size of 32 bits with which libsndfile reads to the end of the file
LOST = 1_000  # pages of an Ogg file behind which something else comes; more are hostile [choice]
CHUNKS = 10_000  # of a file; a hostile file may have millions, of which no more are read [choice]
KEPT = 50_000  # files whose parts are remembered, for one with segments is opened often [choice]
REST = 10  # MPEG frames, 0.3 s; fewer behind the announced end are no recording [choice]
FLAC_HEADER = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # how every FLAC stream begins


class AudioError(UserError):
    """An audio file that cannot be read, or not all of it, or holds no audio."""


class Part(NamedTuple):
    """One recording in a file: a decoder sees `head`, then the bytes start to end."""

    start: int
    end: int
    head: bytes = b""


class Window:
    """A part of an open file, as a file of its own for soundfile."""

    def __init__(self, descriptor: int, part: Part):
        self.descriptor = descriptor
        self.part = part
        self.size = len(part.head) + part.end - part.start
        self.position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = max(0, base + offset)
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, count: int) -> bytes:
        count = max(0, min(count, self.size - self.position))
        found = self.part.head[self.position : self.position + count]
        if len(found) < count:
            place = self.part.start + self.position + len(found) - len(self.part.head)
            found += os.pread(self.descriptor, count - len(found), place)
        self.position += len(found)
        return found


def parts_of(descriptor: int) -> tuple[Part, ...]:
    """The recordings of an open file; () if libsndfile reads the file right as it is.

    Raises AudioError if an Ogg file is cut off, or if recordings follow the first one
    that no decoder here can read. FLAC files are not searched, see `holds_more_flac`.
    """
    beginning = os.pread(descriptor, 12, 0)
    if beginning.startswith(b"OggS"):
        return _remembered(ogg_parts, descriptor)
    if mpeg.looks_like_mpeg(beginning):
        return _remembered(mpeg_parts, descriptor)
    finished = finished_header(descriptor)
    if finished:
        return (finished,)
    end = _end_of_first(descriptor)
    if end and end < os.fstat(descriptor).st_size:
        behind = os.pread(descriptor, 16, end).lstrip(b"\0")  # it may begin at a multiple of 2 or 8
        if behind.startswith(BEGINNINGS):
            raise AudioError(JOINED)
    return ()


_known: dict[tuple, object] = {}  # (function, device, inode, size, time of change) -> its answer


def _remembered(function: Callable, descriptor: int):
    """function(descriptor), computed once as long as the file does not change."""
    status = os.fstat(descriptor)
    key = function, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    if key not in _known:
        if len(_known) >= KEPT:
            _known.clear()
        _known[key] = function(descriptor)
    return _known[key]


# ------------------------------------------------------------------------------------ Ogg and FLAC


def ogg_parts(descriptor: int) -> tuple[Part, ...]:
    """The links of a chained Ogg file (RFC 3533); () if there is only one.

    A page begins with 27 bytes: byte 5 holds flags (2: it begins a stream, 4: it ends
    one), byte 26 is the number of segments, whose sizes follow. A link begins with one
    or more pages with flag 2. Raises AudioError if a link's last page is not whole.
    """
    size = os.fstat(descriptor).st_size
    starts: list[int] = []
    found: int | None = 0
    flags = lost = 0
    while found is not None and lost < LOST:
        page = os.pread(descriptor, 27 + 255, found).ljust(27, b"\0")
        if page[5] & 2 and not flags & 2:
            if starts and not flags & 4:
                raise AudioError("it is cut off: the last page of a recording in it is missing")
            starts.append(found)
        flags = page[5]
        end = found + 27 + page[26] + sum(page[27 : 27 + page[26]])
        # A page that is cut off may reach into the next recording.
        cut = os.pread(descriptor, 4, end) != b"OggS"
        lost += cut
        found = _find(descriptor, b"OggS", found + 4 if cut else end)
    if lost >= LOST:
        raise AudioError("it is damaged: too many of its pages are not followed by another one")
    if not flags & 4 or end > size:
        raise AudioError("it is cut off: its last page is missing")
    if len(starts) < 2:
        return ()
    return tuple(Part(a, b) for a, b in zip(starts, [*starts[1:], size], strict=True))


def holds_more_flac(descriptor: int) -> bool:
    """Whether another FLAC stream follows the first one; reads the whole file."""
    return _remembered(_holds_more_flac, descriptor)


def _holds_more_flac(descriptor: int) -> bool:
    return _find(descriptor, FLAC_HEADER, 4) is not None


def _find(descriptor: int, what: bytes | re.Pattern, position: int) -> int | None:
    """The next place of these bytes (at most 16) from the position on."""
    pattern = what if isinstance(what, re.Pattern) else re.compile(re.escape(what))
    size = 64  # bytes; what is wanted is often right here
    while len(block := os.pread(descriptor, size, position)) >= 4:
        match = pattern.search(block)
        if match:
            return position + match.start()
        position += max(len(block) - 15, 1)
        size = 1 << 18
    return None


# -------------------------------------------------------------------------------------------- MPEG


def mpeg_parts(descriptor: int) -> tuple[Part, ...]:
    """The recordings in an MPEG file; () if libsndfile reads the file right as it is.

    A recording that does not announce its frames gets a tag that does. Without it, the
    decoder guesses its length from the first frame, and would lose the rest.
    """
    size = os.fstat(descriptor).st_size
    if mpeg.tag_covers_all(os.pread(descriptor, 1 << 12, 0), size):
        return ()
    content = b"".join(os.pread(descriptor, 1 << 24, i) for i in range(0, size, 1 << 24))
    runs = []
    for run in mpeg.runs_of(content):
        if run.frames >= (1 if run.tagged else REST):
            runs.append(run)
    ends = [run.start for run in runs[1:]] + [size]
    parts = tuple(_part_of(content, run, end) for run, end in zip(runs, ends, strict=True))
    as_it_is = len(parts) < 2 and not any(part.head for part in parts)
    return () if as_it_is else parts


def _part_of(content: bytes, run: mpeg.Run, end: int) -> Part:
    """A recording as the decoder sees it: with a tag if it announces no frames."""
    layer = run.kind[1]
    if run.promised or layer != 3 or run.audio is None:
        return Part(run.start, end)
    return Part(run.audio, end, mpeg.tag_frame(content[run.audio : run.audio + 4], run.frames))


# --------------------------------------------------------------------- headers of the plain formats

# What the size of the audio is where it was never written: 0, or as of a chunk without samples.
EMPTY = {b"RIFF": (0,), b"RF64": (0,), b"FORM": (8,), b"caff": (0, 4, (1 << 64) - 1)}


class Chunk(NamedTuple):
    """A named stretch of a file. `end` may lie behind the end of the file."""

    name: bytes
    start: int  # of its content, bytes
    size: int  # as its header says
    end: int  # where the next chunk begins


def chunks(descriptor: int, position: int | None = None) -> Iterator[Chunk]:
    """Yields the chunks of a WAV, RF64, AIFF or CAF file from the position on.

    It stops at the first one whose name has characters that are not printable.
    """
    limit = os.fstat(descriptor).st_size
    beginning = os.pread(descriptor, 36, 0)
    kind = beginning[:4]
    header = {b"caff": ">4sQ", b"FORM": ">4sI"}.get(kind, "<4sI")
    width = struct.calcsize(header)
    if position is None:
        position = 8 if kind == b"caff" else 12
    for _ in range(CHUNKS):
        if position >= limit:
            return
        found = os.pread(descriptor, width, position)
        if len(found) < width or not all(32 <= byte < 127 for byte in found[:4]):
            return
        name, size = struct.unpack(header, found)
        if kind == b"RF64" and name == b"data" and size in (0, UNKNOWN) and len(beginning) == 36:
            (size,) = struct.unpack("<Q", beginning[28:36])  # of the chunk ds64, always the first
        start = position + width
        position = start + size + (size % 2 if kind != b"caff" else 0)
        yield Chunk(name, start, size, position)


def finished_header(descriptor: int) -> Part | None:
    """The whole file with the size of its audio, if that was never written; else None.

    A program that is stopped, or writes into a pipe, leaves this size as it was at the
    start. libsndfile reads W64, NIST, and AIFF with a 0 to their end all the same, but
    no other format.
    """
    size = os.fstat(descriptor).st_size
    beginning = os.pread(descriptor, 12, 0)
    kind = beginning[:4]
    if kind == b".snd" and len(beginning) == 12:
        offset, claimed = struct.unpack(">II", beginning[4:])
        unfinished = claimed == 0 and 24 <= offset < size
        return _patched(descriptor, 12, {8: struct.pack(">I", UNKNOWN)}) if unfinished else None
    if kind not in EMPTY:
        return None
    audio = next((chunk for chunk in chunks(descriptor) if chunk.name in (b"data", b"SSND")), None)
    if audio is None or audio.size not in EMPTY[kind] or audio.start + audio.size == size:
        return None
    *_, last = audio, *chunks(descriptor, audio.end)
    if last is not audio and last.end in (size, size + 1):
        return None  # it is really empty: nothing but other chunks follows
    rest = size - audio.start
    if kind == b"caff":
        return _patched(descriptor, audio.start, {audio.start - 8: struct.pack(">Q", rest)})
    short = struct.pack(">I" if kind == b"FORM" else "<I", min(rest, UNKNOWN))
    changes = {audio.start - 4: short}
    if kind == b"RF64":
        changes = {audio.start - 4: struct.pack("<I", UNKNOWN), 28: struct.pack("<Q", rest)}
    return _patched(descriptor, audio.start, changes)


def _patched(descriptor: int, until: int, changes: dict[int, bytes]) -> Part:
    """The whole file with other bytes at some positions before `until`."""
    head = bytearray(os.pread(descriptor, until, 0))
    for position, content in changes.items():
        head[position : position + len(content)] = content
    return Part(until, os.fstat(descriptor).st_size, bytes(head))


def _end_of_first(descriptor: int) -> int | None:
    """The end of the first recording by the file's header; None if it does not say."""
    beginning = os.pread(descriptor, 1024, 0).ljust(32, b"\0")
    kind = beginning[:4]
    if kind in (b"RIFF", b"FORM"):
        return 8 + int.from_bytes(beginning[4:8], "little" if kind == b"RIFF" else "big")
    if kind == b"RF64":
        return 8 + int.from_bytes(beginning[20:28], "little")
    if kind == b"riff":
        return int.from_bytes(beginning[16:24], "little")
    if kind == b".snd":
        return int.from_bytes(beginning[4:8], "big") + int.from_bytes(beginning[8:12], "big")
    if kind == b"caff":
        others = (chunk.start - 12 for chunk in chunks(descriptor) if chunk.name == kind)
        return next(others, None)
    if beginning.startswith(b"NIST_1A"):
        fields = rb"(?:channel_count|sample_n_bytes|sample_count) -i (\d{1,12})"
        found = re.findall(fields, beginning)
        header = re.match(rb"NIST_1A\s+(\d{1,6})", beginning)
        return int(header[1]) + math.prod(map(int, found)) if header and len(found) == 3 else None
    return None
