"""What the bytes of an MPEG audio file (MP3) say: its frames, recordings and tags.

    bytes --mpeg_frames--> frames --runs_of--> recordings

The first frame of a recording may be a tag, which announces how many frames follow. A
file may hold several recordings one behind the other. Nothing is decoded here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

TAGGED = re.compile(rb"\xff[\xe2-\xff][\s\S]{2}\0{9,34}(?:Xing|Info)")  # a frame with a tag

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
    """The frame with this header of 4 bytes; None if they are no header."""
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
    """Whether libsndfile may take a file that begins so for MPEG audio."""
    return beginning.startswith(b"ID3") or mpeg_frame(beginning[:4]) is not None


def mpeg_frames(content: bytes) -> Iterator[tuple[int, Frame]]:
    """Yields every whole frame in an MPEG file with its position.

    Anything between the frames is skipped. At the beginning of the file, behind
    something else, and where the kind changes, a header counts only if another one of
    its kind follows.
    """
    position = 0
    kind = None
    while 0 <= position < len(content) - 3:
        frame = mpeg_frame(content[position : position + 4])
        end = position + frame.size if frame else position
        after = mpeg_frame(content[end : end + 4])
        is_new = frame is not None and frame.kind != kind
        if frame is None or (is_new and (after is None or after.kind != frame.kind)):
            kind = None
            if content.startswith(b"ID3", position):
                position += 10 + _id3_size(content[position + 6 : position + 10])
            else:
                position = content.find(b"\xff", position + 1)
            continue
        tagged = TAGGED.search(content, position + 4, end + 40)
        if tagged and tagged.start() < end:  # a frame cut off: the next recording begins in it
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
    """What the first frame of a recording announces; 0 for what it does not say."""

    frames: int  # that follow
    size: int  # bytes of all frames, this one included


def mpeg_tag(content: bytes, position: int, frame: Frame) -> Tag | None:
    """The tag in a frame; None if it has none.

    LAME and its like write "Xing" or "Info", Fraunhofer's encoders "VBRI".
    """
    if frame.kind[1] != 3:  # only layer III has tags
        return None
    if content.startswith((b"Xing", b"Info"), position + frame.tag):
        start = position + frame.tag + 4
        flags, *fields = struct.unpack(">III", content[start : start + 12].ljust(12, b"\0"))
        frames = fields.pop(0) if flags & 1 else 0
        return Tag(frames, fields.pop(0) if flags & 2 else 0)
    return Tag(0, 0) if content.startswith(b"VBRI", position + 36) else None


@dataclass
class Run:
    """The frames of one recording."""

    start: int  # bytes
    kind: tuple[int, int, int, bool]  # see Frame
    tagged: bool
    promised: int = 0  # frames, by its tag; 0: it has no tag, or the tag does not say
    audio: int | None = None  # where the first frame without a tag begins
    frames: int = 0  # without a tag


def runs_of(content: bytes) -> list[Run]:
    """The frames of an MPEG file, by recording.

    A recording begins with a tag, or where the kind of frames changes, or behind as
    many frames as the last tag announced.
    """
    runs: list[Run] = []
    for position, frame in mpeg_frames(content):
        tag = mpeg_tag(content, position, frame)
        begins = not runs or tag is not None or frame.kind != runs[-1].kind
        if begins or 0 < runs[-1].promised <= runs[-1].frames:
            tagged = tag is not None
            runs.append(Run(position, frame.kind, tagged, tag.frames if tagged else 0))
        if tag is None:
            runs[-1].frames += 1
            if runs[-1].audio is None:
                runs[-1].audio = position
    return runs


def tag_covers_all(beginning: bytes, size: int) -> bool:
    """Whether the first tag accounts for the whole file, so that nothing can follow."""
    position, frame = next(mpeg_frames(beginning), (0, None))
    tag = mpeg_tag(beginning, position, frame) if frame else None
    return tag is not None and tag.frames > 0 and abs(size - position - tag.size) < 1024


def tag_frame(header: bytes, frames: int) -> bytes:
    """A frame whose tag announces so many frames with this header."""
    changed = bytearray(header)
    changed[1] |= 1  # no checksum
    changed[2] = 14 << 4 | header[2] & 0b1100  # the highest bit rate: the tag has room
    frame = mpeg_frame(bytes(changed))
    tag = bytes(changed).ljust(frame.tag, b"\0") + b"Xing" + struct.pack(">II", 1, frames)
    return tag.ljust(frame.size, b"\0")
