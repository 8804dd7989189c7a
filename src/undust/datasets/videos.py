"""Video files as samples of a data set of films."""

from __future__ import annotations

from collections import deque
from contextlib import closing
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Self

from PIL import Image

from undust.datasets.samples import Sample
from undust.errors import UndustError
from undust.formats import video_files
from undust.formats.video_files import VideoFrame, VideoHeader
from undust.pictures import MAX_PIXELS


def is_video(path: Path) -> bool:
    """Whether a file is a video by its name."""
    return path.suffix.lower() in video_files.SUFFIXES


@dataclass(frozen=True)
class Video(Sample):
    """A sample of a video's file."""

    @classmethod
    def of(cls, sample: Sample) -> Self:
        """The sample as it was listed."""
        return cls(**{field.name: getattr(sample, field.name) for field in fields(sample)})

    @cached_property
    def header(self) -> VideoHeader:
        """Number of frames, frame rate and size; raises UndustError as `video_files.header`."""
        return video_files.header(self.path, self.storage.open)

    def image(self) -> Image.Image:
        """The first frame; all are decoded. Raises UndustError as `VideoPlayer.frame`."""
        player = VideoPlayer(self)
        with closing(player):
            player.frame(self.header.frames - 1)
            return player.frame(0).image()

    def size(self) -> tuple[int, int]:
        """Width and height of the first frame; raises UndustError as `header`."""
        return self.header.size

    def check_header(self) -> None:
        """Raises the errors of `header`."""
        _ = self.header

    def conversions(self) -> list[str]:
        """None that are told."""
        return []


class VideoPlayer:
    """The frames of a video, read forwards.

    The last frames are kept, of `MAX_PIXELS` pixels together; for an earlier one the video is
    decoded from its beginning. So a film of any length takes the same memory.
    """

    def __init__(self, film: Video) -> None:
        self._film = film
        self._begin()

    def frame(self, number: int) -> VideoFrame:
        """The frame of a number, from 0. Raises UndustError as `video_files.frames`."""
        if number < self._next - len(self._recent):
            self.close()
        try:
            while self._next <= number:
                self._advance()
        except BaseException:
            self.close()  # so that the next call has the same error
            raise
        return self._recent[number - self._next]

    def close(self) -> None:
        """Closes the file; `frame` opens it again."""
        self._frames.close()
        self._begin()

    def _begin(self) -> None:
        self._frames = video_files.frames(self._film.path, self._film.storage.open)
        self._recent = deque[VideoFrame]()
        self._next = self._pixels = 0

    def _advance(self) -> None:
        """Decodes the next frame."""
        frame = next(self._frames, None)
        if frame is None:
            raise UndustError(
                f"{self._film.path} is a damaged video: it has {self._film.header.frames} frames, "
                f"of which {self._next} can be decoded"
            )
        self._next += 1
        self._recent.append(frame)
        self._pixels += _pixels(frame)
        while self._pixels > MAX_PIXELS:
            self._pixels -= _pixels(self._recent.popleft())


def _pixels(frame: VideoFrame) -> int:
    return frame.decoded.width * frame.decoded.height
