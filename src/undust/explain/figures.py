"""The figures of an explanation, without their form on a page or in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

Control = Literal["slider", "buttons", "words"]


@dataclass(frozen=True)
class Frames:
    """Pictures of one size, of which a reader chooses one at a time.

    title, note: for people; labels: of each picture; control: a slider for an ordered row, buttons
    for alternatives, words for the words of a prompt, which follow the pointer; start: the number
    of the first one shown; alt: of all, for those who do not see them.
    """

    title: str
    labels: Sequence[str]
    images: Sequence[Image.Image]
    alt: str
    control: Control = "slider"
    start: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        assert len(self.labels) == len(self.images) > self.start >= 0, self.title
        assert len({image.size for image in self.images}) == 1, f"{self.title}: of one size"


@dataclass(frozen=True)
class Line:
    """A line of a chart; spread: on either side of each y, None without; arrow: at its end."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    arrow: bool = False
    markers: bool = True

    def __post_init__(self) -> None:
        assert len(self.x) == len(self.y), self.name
        assert self.spread is None or len(self.spread) == len(self.y), self.name


@dataclass(frozen=True)
class LineChart:
    """Lines over two axes. Lines of one name have one colour and one entry in the legend."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    square: bool = False  # one scale for both axes
    note: str = ""

    @property
    def names(self) -> list[str]:
        """Of the lines, each once."""
        return [*dict.fromkeys(line.name for line in self.lines)]


@dataclass(frozen=True)
class TextTable:
    """Rows of text under a header."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


Figure = Frames | LineChart | TextTable
