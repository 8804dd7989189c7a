"""Video files, decoded frame by frame by PyAV (the extra `video`)."""

from __future__ import annotations

import io
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from undust.errors import UndustError, first_line
from undust.formats import mp4
from undust.pictures import MAX_PIXELS, upright
from undust.regular import Opened, Opener, open_regular

SUFFIXES = frozenset({".m4v", ".mkv", ".mov", ".mp4", ".webm"})
# Of FFmpeg's readers these two alone: others are play lists, which name further files.
READERS = {"format_whitelist": "mov,matroska"}
TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}
UNKNOWN, HIGH = 2, 720  # H.264's number of unknown colours; lines from which BT.709 is usual
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # of Matroska and WebM
FILLED = (b"ftyp", b"mdat", b"moof", b"moov")  # boxes of MP4 and MOV that are needed


@dataclass(frozen=True)
class VideoHeader:
    """Number of frames, frames a second (0 if unknown), and upright width and height, pixels."""

    frames: int
    fps: float
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """A frame as PyAV decodes it.

    path: of the video; aspect: width of the frame's pixels, divided by their height.
    """

    path: Path
    decoded: Any
    aspect: Fraction

    @property
    def turned(self) -> int:
        """Degrees by which it is turned to be upright, anticlockwise: 0, 90, 180 or 270."""
        return round(self.decoded.rotation / 90) % 4 * 90

    @property
    def stretched(self) -> tuple[int, int]:
        """Width and height before it is turned, of square pixels."""
        return max(1, round(self.decoded.width * self.aspect)), self.decoded.height

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of `image`."""
        width, height = self.stretched
        return (height, width) if self.turned in (90, 270) else (width, height)

    def image(self) -> Image.Image:
        """The frame as a picture file is read: 8-bit RGBA, upright, of square pixels.

        Raises UndustError for a kind of pixels that cannot be converted.
        """
        try:
            image = Image.fromarray(self._colours().to_ndarray())
        except Exception as error:
            kind = self.decoded.format.name
            raise UndustError(f"{self.path} has pixels that are not read: {kind}") from error
        if image.size != self.stretched:
            image = image.resize(self.stretched, Image.Resampling.LANCZOS)
        return upright(image.transpose(TURNS[self.turned]) if self.turned else image)

    def _colours(self) -> Any:
        """The frame in RGB."""
        scaling, frame = import_module("av.video.reformatter"), self.decoded
        how = scaling.Interpolation
        unknown = frame.colorspace == UNKNOWN and frame.height >= HIGH
        return scaling.VideoReformatter().reformat(
            frame,
            format="rgb24",
            src_colorspace=scaling.Colorspace.ITU709 if unknown else None,
            interpolation=how.BICUBIC | how.ACCURATE_RND | how.FULL_CHR_H_INT | how.BITEXACT,
        )


def header(path: Path, opened: Opener = open_regular) -> VideoHeader:
    """What is known of a video from one reading of the file, of which the first frame is decoded.

    All frames are decoded, and counted, if the file does not tell their number, or some of those
    that it has are not shown. Raises UndustError as `frames`.
    """
    packets, hidden, first = 0, False, None
    with _opened(path, opened) as (container, stream):
        for packet in _whole(container, stream, path):
            packets += packet.size > 0
            hidden = hidden or packet.is_discard
            if first is None:
                first = next((_checked(each, stream, path) for each in packet.decode()), None)
        told, rate = stream.frames, float(stream.average_rate or 0)
    if first is None:
        raise UndustError(f"{path} is a video without frames")
    if hidden or told != packets:
        with closing(frames(path, opened)) as every:
            packets = sum(1 for _ in every)
    return VideoHeader(packets, rate, first.size)


def frames(path: Path, opened: Opener = open_regular) -> Generator[VideoFrame]:
    """The frames of a video, one after the other.

    Raises UndustError for a file that is no video of these containers, without pictures, damaged,
    cut off, or with frames of more than `MAX_PIXELS`; and without PyAV.
    """
    with _opened(path, opened) as (container, stream):
        for packet in _whole(container, stream, path):
            for frame in packet.decode():
                yield _checked(frame, stream, path)


@contextmanager
def _opened(path: Path, opened: Opener) -> Generator[tuple[Any, Any]]:
    """An opened video, and the stream of its pictures."""
    av, begun = mp4.package(path), False
    try:
        with opened(path) as file:
            if not file.read(1):
                raise UndustError(f"{path} is an empty file, not a video")
            if _is_cut_off(file):
                raise UndustError(f"{path} is cut off: the file is shorter than its header says")
            file.seek(0)
            with av.open(file, container_options=READERS, metadata_errors="replace") as container:
                begun, stream = True, _pictures(container, path)
                _check_size(stream.codec_context.width, stream.codec_context.height, path)
                stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
                yield container, stream
    except UndustError:
        raise
    except Exception as error:  # FFmpeg's, those of files, and any other that a damaged one causes
        if not begun and isinstance(error, av.FFmpegError):
            kinds = ", ".join(sorted(SUFFIXES))
            raise UndustError(
                f"{path} cannot be read as a video: it is damaged, or none of {kinds}"
            ) from error
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UndustError(f"{path} cannot be read as a video: {reason}") from error


def _pictures(container: Any, path: Path) -> Any:
    """The first stream of pictures that is no cover of the file."""
    cover = import_module("av.stream").Disposition.attached_pic
    streams = [each for each in container.streams.video if not each.disposition & cover]
    if not streams:
        raise UndustError(f"{path} is a video without pictures")
    if streams[0].codec_context is None:
        raise UndustError(f"{path} is a video of a codec that PyAV does not read")
    return streams[0]


def _whole(container: Any, stream: Any, path: Path) -> Generator[Any]:
    """The packets of a stream; UndustError for one of which a part is absent."""
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise UndustError(f"{path} is a damaged video: a part of it is absent")
        yield packet


def _checked(frame: Any, stream: Any, path: Path) -> VideoFrame:
    """A frame that is not too large."""
    found = VideoFrame(path, frame, stream.sample_aspect_ratio or Fraction(1))
    _check_size(*found.size, path)
    return found


def _check_size(width: int, height: int, path: Path) -> None:
    if width * height > MAX_PIXELS:
        raise UndustError(
            f"{path} is too large: frames of {width}x{height}; {MAX_PIXELS:,} pixels at most"
        )


def _is_cut_off(file: Opened) -> bool:
    """Whether a part that the file's header announces ends after the file itself."""
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(4) == EBML:
        file.seek(_number(file), io.SEEK_CUR)
        if file.read(4) != SEGMENT:
            return False
        size = _number(file)
        return file.tell() + size > length
    place = 0
    while place + 8 <= length:
        file.seek(place)
        start = file.read(16)
        size, kind = int.from_bytes(start[:4]), start[4:8]
        if size == 1:
            size = int.from_bytes(start[8:])
        if size < 8:  # 0: up to the end of the file
            return False
        place += size
        if place > length and kind in FILLED:
            return True
    return False


def _number(file: Opened) -> int:
    """A size in a Matroska file (RFC 8794, section 4); 0 for an unknown one."""
    first = file.read(1)
    if not first or not first[0]:
        return 0
    more = 8 - first[0].bit_length()  # bytes that follow, and zeros before the mark
    value = int.from_bytes(bytes([first[0] & ((1 << (7 - more)) - 1)]) + file.read(more))
    return 0 if value == (1 << (7 * (more + 1))) - 1 else value
