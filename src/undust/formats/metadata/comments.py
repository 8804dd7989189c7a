"""Comments in GIF and MP4 files, found without decoding a frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

LIMIT = 2**20  # bytes of one text, also of a compressed one when unpacked
GIF_STARTS = (b"GIF87a", b"GIF89a")
EXTENSION, IMAGE, TRAILER, COMMENT = b"!", b",", b";", b"\xfe"  # what GIF blocks begin with
# MP4 files have the kind of their first box after its length, and brands that others do not have.
MP4_START, MP4_BRANDS = b"ftyp", (b"iso", b"mp4", b"avc1", b"M4V ")
# The boxes around a comment, from outside to inside (QuickTime File Format, metadata of iTunes).
COMMENT_BOXES = (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data")


class DamageError(Exception):
    """An error in a file, without its name."""


def is_mp4_start(start: bytes) -> bool:
    """Whether the first 12 bytes of a file are those of an MP4 film; AVIF has other brands."""
    return start[4:8] == MP4_START and start[8:12].startswith(MP4_BRANDS)


def in_gif(file: BinaryIO) -> Iterator[bytes]:
    """The comments of a GIF, each cut to one byte more than `LIMIT` (GIF89a, sections 18 to 27).

    file: at its beginning; all its blocks are passed. Raises DamageError for one that is cut short
    or has unknown blocks.
    """
    screen = _exactly(file, 13)
    file.seek(_table(screen[10]), 1)
    while (start := _exactly(file, 1)) != TRAILER:
        if start == IMAGE:
            descriptor = _exactly(file, 9)
            file.seek(_table(descriptor[8]) + 1, 1)  # and the minimum code size
        elif start != EXTENSION:
            raise DamageError("it has an unknown block")
        kept = start == EXTENSION and _exactly(file, 1) == COMMENT
        comment = bytearray()
        while length := _exactly(file, 1)[0]:
            block = _exactly(file, length)
            if kept and len(comment) <= LIMIT:
                comment += block
        if kept:
            yield bytes(comment[: LIMIT + 1])


def in_mp4(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The comments of an MP4 film, each cut to one byte more than `LIMIT`.

    size: of the file, in bytes. Raises DamageError for one that is cut short.
    """
    yield from _inside(file, 0, size, COMMENT_BOXES)


def _inside(file: BinaryIO, start: int, end: int, path: tuple[bytes, ...]) -> Iterator[bytes]:
    """The contents of the boxes at a path below the bytes from `start` to `end`."""
    if not path:
        file.seek(start + 8)  # after the type of the text and its language
        yield file.read(min(max(end - start - 8, 0), LIMIT + 1))
        return
    while start < end:
        file.seek(start)
        head = file.read(min(16, end - start))
        length, content = int.from_bytes(head[:4], "big"), 8
        if length == 1:  # it follows, in 8 bytes
            length, content = int.from_bytes(head[8:16], "big"), 16
        elif length == 0:
            length = end - start
        if len(head) < content or not content <= length <= end - start:
            raise DamageError("it is cut short")
        if head[4:8] == path[0]:
            content += 4 * (path[0] == b"meta")  # its version
            yield from _inside(file, start + content, start + length, path[1:])
        start += length


def _exactly(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise DamageError("it is cut short")
    return content


def _table(flags: int) -> int:
    """The bytes of a GIF's colour table, by the flags that announce it."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
