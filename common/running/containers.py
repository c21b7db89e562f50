"""What the bytes of an audio file say: where its recordings begin and end, and whether
it is whole.

    open file --parts_of--> (Part, ...) --Window--> what libsndfile decodes as files of
    their own

libsndfile decodes audio, but it reads the first recording of a file alone, and it
believes every length in a header. This module looks for more recordings behind the
first one (chained Ogg, joined MP3), for lengths that were never written, and for an end
that is missing. It decodes nothing.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from common.errors import UserError

BEGINNINGS = b"RIFF", b"RF64", b"FORM", b".snd", b"caff", b"riff", b"NIST_1A"  # of plain formats
JOINED = (
    "it holds several recordings one behind the other, and only the first of them can be read: "
    "write each into a file of its own"
)
UNKNOWN = 0xFFFFFFFF  # a size of 32 bits with which libsndfile reads to the end of the file
LOST = 1_000  # pages of an Ogg file behind which something else comes; more are hostile [choice]
CHUNKS = 10_000  # of a file; a hostile file may have millions, of which no more are read [choice]
KEPT = 50_000  # files whose parts are remembered, for one with segments is opened often [choice]
TAGGED = re.compile(rb"\xff[\xe2-\xff][\s\S]{2}\0{9,34}(?:Xing|Info)")  # a frame with a tag
REST = 10  # MPEG frames, 0.3 s; fewer behind the announced end are no recording [choice]
FLAC_HEADER = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # how every FLAC stream begins


class AudioError(UserError):
    """An audio file that cannot be read, or not all of it, or holds no audio."""


class Part(NamedTuple):
    """One recording in a file: a decoder is to see `head`, then the file's bytes start
    to end."""

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
    """The recordings of an open file, or () where libsndfile reads the file right as it
    is.

    Raises AudioError where an Ogg file is cut off, or where recordings follow the first
    one that no decoder here can read. FLAC is not looked through: see
    `holds_more_flac`.
    """
    beginning = os.pread(descriptor, 12, 0)
    if beginning.startswith(b"OggS"):
        return _remembered(ogg_parts, descriptor)
    if looks_like_mpeg(beginning):
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
    """What the function says of an open file, computed once while the file stays the
    same."""
    status = os.fstat(descriptor)
    key = function, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    if key not in _known:
        if len(_known) >= KEPT:
            _known.clear()
        _known[key] = function(descriptor)
    return _known[key]


# ------------------------------------------------------------------------------------ Ogg and FLAC


def ogg_parts(descriptor: int) -> tuple[Part, ...]:
    """The links of a chained Ogg file (RFC 3533), or () where there is only one.

    A page has 27 bytes, of which byte 5 holds flags (2: it begins a stream, 4: it ends
    one) and byte 26 counts the sizes of its segments, which follow. A link begins with
    one page or more of flag 2. Raises AudioError where the last page of a link is
    missing, or cut.
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
    """Whether another FLAC stream follows the first one. To know that, the whole file
    is read."""
    return _remembered(_holds_more_flac, descriptor)


def _holds_more_flac(descriptor: int) -> bool:
    return _find(descriptor, FLAC_HEADER, 4) is not None


def _find(descriptor: int, what: bytes | re.Pattern, position: int) -> int | None:
    """Where the bytes, at most 16, are next found in an open file from the position
    on."""
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

# MPEG frames begin with 4 bytes: 11 bits of ones, then version, layer and so on (ISO 11172-3).
RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # Hz
LOW_KBITS = 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160
KBITS = {  # (whether it is version 1, layer) -> kilobits per second
    (True, 1): tuple(range(32, 449, 32)),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): LOW_KBITS,
    (False, 3): LOW_KBITS,
}


class Frame(NamedTuple):
    """What the header of an MPEG frame says."""

    size: int  # bytes, header included
    kind: tuple[int, int, int, bool]  # version (3: 1, 2: 2, 0: 2.5), layer, Hz, whether it is mono
    tag: int  # where a Xing or Info tag would stand, in bytes from the frame's start


@lru_cache(maxsize=1 << 12)
def mpeg_frame(header: bytes) -> Frame | None:
    """Reads the 4 bytes with which a frame begins; None where they are no header of a
    frame."""
    if len(header) < 4 or header[0] != 0xFF or header[1] < 0xE0:
        return None
    version = header[1] >> 3 & 3
    layer = 4 - (header[1] >> 1 & 3)
    bits = header[2] >> 4
    rate = header[2] >> 2 & 3
    if version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return None
    hertz = RATES[version][rate]
    kbits = KBITS[version == 3, layer][bits - 1]
    padding = header[2] >> 1 & 1
    if layer == 1:
        size = (12_000 * kbits // hertz + padding) * 4
    else:
        samples = 1152 if version == 3 or layer == 2 else 576
        size = samples // 8 * 1000 * kbits // hertz + padding
    mono = header[3] >> 6 == 3
    if version == 3:
        side = 17 if mono else 32
    else:
        side = 9 if mono else 17
    return Frame(size, (version, layer, hertz, mono), 4 + side + 2 * (not header[1] & 1))


def looks_like_mpeg(beginning: bytes) -> bool:
    """Whether libsndfile may hand a file that begins so to its decoder for MPEG
    audio."""
    return beginning.startswith(b"ID3") or mpeg_frame(beginning[:4]) is not None


def mpeg_frames(content: bytes) -> Iterator[tuple[int, Frame]]:
    """Every whole frame in an MPEG file with its position; what lies between is passed
    over.

    At the beginning, after something else, and where the kind changes, a header counts
    if another of its kind follows.
    """
    position = 0
    kind = None
    while 0 <= position < len(content) - 3:
        frame = mpeg_frame(content[position : position + 4])
        end = position + frame.size if frame else position
        after = mpeg_frame(content[end : end + 4])
        if frame is None or (kind != frame.kind and (after is None or after.kind != frame.kind)):
            kind = None
            if content.startswith(b"ID3", position):
                position += 10 + _id3_size(content[position + 6 : position + 10])
            else:
                position = content.find(b"\xff", position + 1)
            continue
        tagged = TAGGED.search(content, position + 4, end + 40)
        if tagged and tagged.start() < end:  # the frame is cut off: the next recording begins in it
            kind = None
            position = tagged.start()
            continue
        if end <= len(content):
            yield position, frame
        kind = frame.kind
        position = end


def _id3_size(size: bytes) -> int:
    """The size of an ID3v2 tag, which has 7 bits in each of 4 bytes."""
    total = 0
    for byte in size:
        total = total << 7 | byte & 127
    return total


class Tag(NamedTuple):
    """What the first frame of a recording announces: 0 where it does not say."""

    frames: int  # that follow
    size: int  # bytes of all frames, this one included


def mpeg_tag(content: bytes, position: int, frame: Frame) -> Tag | None:
    """The tag in a frame, by LAME and its like (Xing, Info) or by Fraunhofer's encoders
    (VBRI)."""
    if frame.kind[1] != 3:
        return None
    if content.startswith((b"Xing", b"Info"), position + frame.tag):
        start = position + frame.tag + 4
        flags, *fields = struct.unpack(">III", content[start : start + 12].ljust(12, b"\0"))
        frames = fields.pop(0) if flags & 1 else 0
        return Tag(frames, fields.pop(0) if flags & 2 else 0)
    return Tag(0, 0) if content.startswith(b"VBRI", position + 36) else None


@dataclass
class _Run:
    """Frames of one recording, while they are collected."""

    start: int  # bytes
    kind: tuple
    tagged: bool
    promised: int = 0  # frames, by its tag; 0: it has no tag, or the tag does not say
    audio: int | None = None  # where the first frame without a tag begins
    frames: int = 0  # without a tag


def _runs_of(content: bytes) -> list[_Run]:
    """The frames of an MPEG file, by recording."""
    runs: list[_Run] = []
    for position, frame in mpeg_frames(content):
        tag = mpeg_tag(content, position, frame)
        begins = not runs or tag is not None or frame.kind != runs[-1].kind
        if begins or 0 < runs[-1].promised <= runs[-1].frames:
            tagged = tag is not None
            runs.append(_Run(position, frame.kind, tagged, tag.frames if tagged else 0))
        if tag is None:
            runs[-1].frames += 1
            if runs[-1].audio is None:
                runs[-1].audio = position
    return runs


def _tag_covers_all(beginning: bytes, size: int) -> bool:
    """Whether the tag at the beginning accounts for the whole file, so that nothing can
    follow."""
    position, frame = next(mpeg_frames(beginning), (0, None))
    tag = mpeg_tag(beginning, position, frame) if frame else None
    return tag is not None and tag.frames > 0 and abs(size - position - tag.size) < 1024


def mpeg_parts(descriptor: int) -> tuple[Part, ...]:
    """The recordings in an MPEG file, or () where libsndfile reads the file right as it
    is.

    A recording begins with a tag, or where the kind of frames changes, or behind as
    many frames as the last tag announced. One that does not announce its frames gets a
    tag that does: without it, its length is guessed from its first frame, and the rest
    would be lost.
    """
    size = os.fstat(descriptor).st_size
    if _tag_covers_all(os.pread(descriptor, 1 << 12, 0), size):
        return ()
    content = b"".join(_blocks(descriptor, size))
    runs = [run for run in _runs_of(content) if run.frames >= (1 if run.tagged else REST)]
    ends = [run.start for run in runs[1:]] + [size]
    parts = tuple(_part_of(content, run, end) for run, end in zip(runs, ends, strict=True))
    as_it_is = len(parts) < 2 and not any(part.head for part in parts)
    return () if as_it_is else parts


def _blocks(descriptor: int, size: int) -> Iterator[bytes]:
    for position in range(0, size, 1 << 24):
        yield os.pread(descriptor, 1 << 24, position)


def _part_of(content: bytes, run: _Run, end: int) -> Part:
    """A recording as the decoder is to see it, with a tag where it announces no
    frames."""
    version, layer, _, _ = run.kind
    if run.promised or layer != 3 or run.audio is None:
        return Part(run.start, end)
    header = bytearray(content[run.audio : run.audio + 4])
    header[1] |= 1  # no checksum
    header[2] = 14 << 4 | header[2] & 0b1100  # the highest bit rate: the tag has room
    frame = mpeg_frame(bytes(header))
    tag = bytes(header).ljust(frame.tag, b"\0") + b"Xing" + struct.pack(">II", 1, run.frames)
    return Part(run.audio, end, tag.ljust(frame.size, b"\0"))


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
    """The chunks of a WAV, RF64, AIFF or CAF file from the position on.

    They end before the first that has no name of printable characters.
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
    """The whole file with the size of its audio put in, where that was never written;
    else None.

    A program that is stopped, or writes into a pipe, leaves this size as it was at the
    start. libsndfile reads such files to their end in W64, NIST, and AIFF with a 0, but
    not in others.
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
    """Where the first recording of a file ends, as its header says; None where it does
    not say."""
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
