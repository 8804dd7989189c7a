"""Data sets of films, as samples of single frames.

An animated WebP, GIF or PNG is a film, and so is a video; pictures that are not animated are the
frames of one film for each folder, in the order of their names, numbers in them by value, or of the
metadata's rows. The metadata of a data set of pictures apply, with two more columns of whole
numbers: `fps`, frames a second, without it that of the file, or 7; and `motion`, the motion bucket,
without it 127.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

from PIL import Image

from undust.datasets import image_folder
from undust.datasets.samples import Contents, Sample, Split
from undust.datasets.videos import Video, VideoPlayer, is_video
from undust.errors import UndustError, printable
from undust.formats import mp4, video_files
from undust.pictures import animation, read_frames

FPS, MOTION = 7, 127  # of a film that tells none
MOST_FPS, MOST_MOTION = 120, 255
KEPT = 4  # films whose frames are kept


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a film, a sample of its own.

    still: its picture, or the animation or video that it is in; film: the path of these, or of the
    folder of stills; number: in an animation or video, from 0, else None; reader: of these.
    """

    still: Sample
    film: Path
    number: int | None
    fps: int
    motion: int
    reader: FrameReader

    @property
    def captions(self) -> Mapping[str, str]:
        """Those of the film."""
        return self.still.captions

    @property
    def group(self) -> str:
        """The concept, or the film, by its path in the data set."""
        if self.number is not None or self.still.column("concept"):
            return self.still.group
        return str(PurePosixPath(self.still.group).parent)

    @property
    def split(self) -> Split:
        """The film's part of the data."""
        return self.still.split

    @property
    def columns(self) -> Mapping[str, str]:
        """All text and whole numbers that are known of it, by column."""
        return self.still.columns

    @property
    def maps(self) -> Mapping[str, Path]:
        """Of stills the pictures beside them."""
        return {} if self.number is not None else self.still.maps

    def column(self, name: str, /) -> str | None:
        """The text or number in a column."""
        return self.still.column(name)

    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""
        return self.still.size()

    def content_hash(self) -> str:
        """A hash of the file and of the place in it."""
        if self.number is None:
            return self.still.content_hash()
        return sha256(f"{self.reader.digest(self.still)} {self.number}".encode()).hexdigest()

    def image(self) -> Image.Image:
        """The frame. Raises UndustError as `read_image`."""
        if self.number is None:
            return self.still.image()
        return self.reader.image(self.still, self.number)

    def has_beside(self, column: str, /) -> bool:
        """Whether a still has, or names, a picture."""
        return self.number is None and self.still.has_beside(column)

    def beside(self, column: str, /) -> Image.Image:
        """That picture."""
        return self.still.beside(column)

    def size_beside(self, column: str, /) -> tuple[int, int]:
        """Width and height of that picture."""
        return self.still.size_beside(column)


class FrameReader:
    """The frames of animations and videos; those of the last few films are kept.

    Of an animation all frames are, of a video those of `VideoPlayer`. Several threads may read.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Path, Sequence[Image.Image] | VideoPlayer] = OrderedDict()
        self._digests: dict[Path, str] = {}

    def image(self, film: Sample, number: int) -> Image.Image:
        """A frame; number: from 0. Raises UndustError as `read_frames` and `VideoPlayer.frame`."""
        with self._lock:
            found = self._kept.get(film.path)
            if found is None:
                found = self._kept[film.path] = _opened(film)
                if len(self._kept) > KEPT:
                    _, oldest = self._kept.popitem(last=False)
                    if isinstance(oldest, VideoPlayer):
                        oldest.close()
            if not isinstance(found, VideoPlayer):
                return found[number]
            frame = found.frame(number)
        return frame.image()

    def digest(self, film: Sample) -> str:
        """The hash of a film's file."""
        if film.path not in self._digests:
            self._digests[film.path] = film.content_hash()
        return self._digests[film.path]


def scan(folder: Path | str) -> Contents:
    """Lists a data set of films: as `image_folder.scan`, and videos too, each a `Video`."""
    found = image_folder.scan(folder, video_files.SUFFIXES)
    found.samples = [Video.of(each) if is_video(each.path) else each for each in found.samples]
    return found


def need_package(found: Contents) -> None:
    """Raises UndustError if there are videos, and no PyAV to read them."""
    if videos := [sample for sample in found.samples if isinstance(sample, Video)]:
        mp4.package(videos[0].path)


def frames_of(samples: Sequence[Sample]) -> list[Frame]:
    """The frames of all films, one film after the other.

    samples: of a data set of films. Raises UndustError for pictures that cannot be read, and
    for columns `fps` and `motion` that are no such numbers.
    """
    reader, films = FrameReader(), dict[Path, list[Frame]]()
    for sample in samples:
        count, own = _length(sample)
        fps = _number(sample, "fps", min(max(round(own), 1), MOST_FPS), 1, MOST_FPS)
        motion = _number(sample, "motion", MOTION, 0, MOST_MOTION)
        alone = count == 1 and not isinstance(sample, Video)
        film = sample.path.parent if alone else sample.path
        numbers = (None,) if alone else range(count)
        frames = [Frame(sample, film, number, fps, motion, reader) for number in numbers]
        films.setdefault(film, []).extend(frames)
    return [frame for each in films.values() for frame in sorted(each, key=_place)]


def fault(sample: Sample) -> str:
    """Why not all frames of an animation can be read, or not a still; "" if they can.

    Of a video it is known already.
    """
    if isinstance(sample, Video):
        return ""
    try:
        count, _ = animation(sample.path, sample.storage.open)
        found = 1 if count == 1 else len(read_frames(sample.path, sample.storage.open))
    except UndustError as error:
        return f"{error} (a frame after the first)"
    return "" if found == count else f"{sample.path}: only {found} of {count} frames can be read"


def of_several_sizes(frames: Sequence[Frame]) -> list[str]:
    """The paths of films whose stills have different sizes."""
    sizes: dict[Path, set[tuple[int, int]]] = {}
    for frame in frames:
        if frame.number is None:
            sizes.setdefault(frame.film, set()).add(frame.size())
    return [str(film) for film, found in sizes.items() if len(found) > 1]


def check_columns(folder: Path, unread: Mapping[str, str]) -> None:
    """Raises UndustError if there are values of `fps` or `motion` that are no whole numbers.

    unread: the columns of a data set with values that are neither such numbers nor text.
    """
    for column in ("fps", "motion"):
        if column in unread:
            raise UndustError(
                f"{folder}: the column {column} has values that are no whole numbers; 8 is one, "
                "and 8.0 is none"
            )


def _place(frame: Frame) -> list[str | tuple[int, str]]:
    """By which the stills of a film are sorted: the parts of the name; nothing for other frames.

    Stills with metadata are in the order of its rows, and keep it.
    """
    if frame.number is not None or frame.still.place is not None:
        return []
    parts: list[str | tuple[int, str]] = [*re.split("([0-9]+)", frame.still.path.name)]
    numbers = (str(each).lstrip("0") for each in parts[1::2])
    parts[1::2] = [(len(number), number) for number in numbers]
    return parts


def _opened(film: Sample) -> Sequence[Image.Image] | VideoPlayer:
    if isinstance(film, Video):
        return VideoPlayer(film)
    return read_frames(film.path, film.storage.open)


def _length(sample: Sample) -> tuple[int, float]:
    """The number of frames in a file, and frames a second."""
    if isinstance(sample, Video):
        return sample.header.frames, sample.header.fps or FPS
    count, duration = animation(sample.path, sample.storage.open)
    return count, 1000 / duration if duration else FPS


def _number(sample: Sample, column: str, default: int, least: int, most: int) -> int:
    given = sample.column(column)
    if not given:
        return default
    if given.isdecimal() and len(given) <= len(str(most)) and least <= int(given) <= most:
        return int(given)
    raise UndustError(
        f"{sample.path}: {column} is {printable(given)}; it has to be a whole number from {least} "
        f"to {most}"
    )
