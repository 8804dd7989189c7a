"""Encoded data: a folder with latents and encoded captions in the place of pictures.

`encoded.jsonl` lists the samples, one a line after a first line about the folder. It is written
last, so that a folder with it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from undust.datasets.samples import FOLDER, Captioned, Split
from undust.errors import UndustError, demand, printable
from undust.formats.files import atomic_write
from undust.formats.safetensors_file import joined_hash
from undust.regular import read_text

INDEX = "encoded.jsonl"
LIMIT = 4 << 30  # bytes of the index


class Encodable(Captioned, Protocol):
    """The parts of a sample that are kept."""

    @property
    def group(self) -> str:
        """The name of the group that shares a draw, such as a concept."""
        ...

    @property
    def split(self) -> Split:
        """The sample's part of the data: "train" is trained on."""
        ...

    @property
    def columns(self) -> Mapping[str, str]:
        """All text and whole numbers that are known of it, by column."""
        ...

    def size(self) -> tuple[int, int]:
        """Width and height, pixels, without decoding. Raises UndustError for a bad header."""
        ...

    def content_hash(self) -> str:
        """The SHA-256 of the picture's file. Raises UndustError if it cannot be read."""
        ...


class EncodedRow(BaseModel):
    """One line of the index: a sample without its picture."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    captions: dict[str, str]
    group: str
    split: Literal["train", "validation", "test"]
    columns: dict[str, str]
    folder: str
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @classmethod
    def of(cls, sample: Encodable) -> EncodedRow:
        """The row of a sample."""
        width, height = sample.size()
        return cls(
            captions=dict(sample.captions),
            group=sample.group,
            split=sample.split,
            columns=dict(sample.columns),
            folder=sample.column(FOLDER) or "",
            width=width,
            height=height,
            sha256=sample.content_hash(),
        )


@dataclass(frozen=True)
class EncodedSample:
    """One sample of encoded data. place: the folder of the data."""

    row: EncodedRow
    place: Path
    maps: Mapping[str, Path] = field(default_factory=dict[str, Path])

    @property
    def captions(self) -> Mapping[str, str]:
        """The captions, by column."""
        return self.row.captions

    @property
    def group(self) -> str:
        """The name of the group that shares a draw, such as a concept."""
        return self.row.group

    @property
    def split(self) -> Split:
        """The sample's part of the data: "train" is trained on."""
        return self.row.split

    @property
    def columns(self) -> Mapping[str, str]:
        """All text and whole numbers that are known of it, by column."""
        return self.row.columns

    def column(self, name: str) -> str | None:
        """The text or number in a column, "folder" for the folder's name; None if absent."""
        return self.row.folder if name == FOLDER else self.row.columns.get(name)

    def size(self) -> tuple[int, int]:
        """Width and height, pixels, without decoding. Raises UndustError for a bad header."""
        return self.row.width, self.row.height

    def content_hash(self) -> str:
        """The SHA-256 of the picture's file. Raises UndustError if it cannot be read."""
        return self.row.sha256

    def image(self) -> Image.Image:
        """Raises UndustError."""
        raise UndustError(
            f"{self.place} has latents and no pictures, and figures, maps, masks and pixels need "
            "them: set data.folder to the pictures"
        )

    def has_beside(self, column: str) -> bool:  # noqa: ARG002
        """False."""
        return False

    def beside(self, column: str) -> Image.Image:  # noqa: ARG002
        """Raises UndustError."""
        return self.image()

    def size_beside(self, column: str) -> tuple[int, int]:  # noqa: ARG002
        """Raises UndustError."""
        return self.image().size


class EncodedData:
    """The samples of encoded data."""

    def __init__(self, folder: Path) -> None:
        """Raises UndustError for an index that cannot be read."""
        self.folder = folder
        self.samples = [EncodedSample(row, folder) for row in _rows(folder / INDEX)]
        self.notes = [f"{folder}: encoded data, whose pictures are not read"]

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int, /) -> EncodedSample:
        """The sample at 0 ≤ index < len(self), in the order of the pictures' source."""
        return self.samples[index]

    def digest(self, indices: Sequence[int], /) -> str:
        """A hash of the pictures' files, as that of their folder."""
        return joined_hash(self.samples[index].content_hash() for index in indices)


@contextmanager
def remaking() -> Generator[None]:
    """Adds to the errors of encoded files within, as of damaged ones, the command that helps."""
    try:
        yield
    except UndustError as error:
        raise UndustError(f"{error}; undust data encode makes it again") from error


def is_encoded(folder: Path) -> bool:
    """Whether a folder has encoded data."""
    return (folder / INDEX).is_file()


def write_index(folder: Path, samples: Iterable[Encodable]) -> None:
    """Writes the index of encoded data, whole or not at all."""
    lines = [json.dumps({"undust": "encoded data", "version": 1})]
    lines += [EncodedRow.of(sample).model_dump_json() for sample in samples]
    atomic_write(folder / INDEX, "".join(f"{line}\n" for line in lines).encode())


def _rows(path: Path) -> list[EncodedRow]:
    try:
        head, *lines = read_text(path, LIMIT).removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UndustError(f"{path} cannot be read: {error}") from error
    rows: list[EncodedRow] = []
    try:
        about: Any = json.loads(head)
    except (ValueError, RecursionError):
        about = None
    if about != {"undust": "encoded data", "version": 1}:
        raise UndustError(f"{path} is not an index of encoded data, or of a newer version")
    for number, line in enumerate(lines, 2):
        try:
            rows.append(EncodedRow.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the line"
            raise UndustError(
                f"{path} line {number}: {printable(where)}: {demand(first)}; undust data encode "
                "makes it again"
            ) from error
    return rows
