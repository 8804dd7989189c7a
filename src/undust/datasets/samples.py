"""Samples of a data set: pictures with their captions and columns, wherever they are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from PIL import Image

from undust.datasets.files import SIDECARS
from undust.datasets.metadata import FEW, NO_CAPTIONS, LineError, Row, text_of
from undust.datasets.storage import Disk, Storage
from undust.errors import LISTED, UndustError, printable
from undust.formats.safetensors_file import content_hash
from undust.pictures import check_header, conversions, read_image, upright_size

Split = Literal["train", "validation", "test"]
SPLITS: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
FOLDER = "folder"  # the name of a column that each picture has: the name of its folder
CAPTIONS = ("text", "caption", "captions", "prompt", "description", "title")
"""Columns of captions, by precedence."""


class Captioned(Protocol):
    """A sample with captions."""

    @property
    def captions(self) -> Mapping[str, str]:
        """The captions, by column."""
        ...

    def column(self, name: str, /) -> str | None:
        """The text or number in a column, "folder" for the folder's name; None if absent."""
        ...


@dataclass(frozen=True)
class Sample:
    """One picture: its path, its captions by column (`text`, `text_ko`, …), its group and split.

    columns: all text and whole numbers that are known of it; place: the folder of the files that
    columns name; maps: files of pictures beside it, by column; storage: of all these paths.
    """

    path: Path
    captions: Mapping[str, str]
    group: str
    split: Split = "train"
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    place: Path | None = None
    maps: Mapping[str, Path] = field(default_factory=dict[str, Path])
    storage: Storage = field(default_factory=Disk, compare=False, repr=False)

    def image(self) -> Image.Image:
        """Reads the picture; raises UndustError as `read_image`."""
        return read_image(self.path, self.storage.open)

    def size(self) -> tuple[int, int]:
        """Width and height of `image`, from the picture's header; raises UndustError as it."""
        return upright_size(self.path, self.storage.open)

    def check_header(self) -> None:
        """Raises the errors of `image` that are found in the picture's header."""
        check_header(self.path, self.storage.open)

    def conversions(self) -> list[str]:
        """The colour conversions of `image`, by the header."""
        return conversions(self.path, self.storage.open)

    def content_hash(self) -> str:
        """The SHA-256 of the picture's file. Raises UndustError if it cannot be read."""
        return content_hash(self.path, self.storage.open)

    def column(self, name: str) -> str | None:
        """The text or number in a column, "folder" for the folder's name; None if absent."""
        return self.storage.folder_name(self.path) if name == FOLDER else self.columns.get(name)

    def has_beside(self, column: str) -> bool:
        """Whether `beside` has a file to read."""
        return column in self.maps or column in self.columns

    def beside(self, column: str) -> Image.Image:
        """Reads the map in a column, or in the file that the column names.

        Raises UndustError as `read_image`, and if there is no such file.
        """
        return read_image(self._beside(column), self.storage.open)

    def size_beside(self, column: str) -> tuple[int, int]:
        """Width and height of `beside`, from its header; raises UndustError as it."""
        return upright_size(self._beside(column), self.storage.open)

    def _beside(self, column: str) -> Path:
        if column in self.maps:
            return self.maps[column]
        name = self.columns.get(column, "")
        if self.place is None or not name:
            raise UndustError(f"{self.path} has no {printable(column)} in its metadata")
        try:
            return self.storage.inside(self.place, name, column)
        except LineError as error:
            raise UndustError(f"{self.path}: {error}") from None


@dataclass
class Contents:
    """The content of a data set.

    kind: its layout, in words; unit: a word for one of the samples. samples: in the order of the
    metadata's rows, without metadata in the order of names. broken: an error for each row, file or
    part that cannot be used. unlisted: pictures that the metadata beside or above them does not
    name. unpaired: maps in parallel folders without a picture. sidecars: the number of captions
    from files beside the pictures; unread_sidecars: of such files that are not read because the
    metadata has the caption; blank_sidecars: of pictures for which they have no text. hidden,
    links, outputs, skipped: files as `Unread` has them, by name. columns: names of all; unread: of
    those of which nothing is read, and the kind of their values. remarks: further lines for people.
    """

    kind: str = "folder"
    unit: str = "picture"
    samples: list[Sample] = field(default_factory=list[Sample])
    broken: list[UndustError] = field(default_factory=list[UndustError])
    unlisted: list[str] = field(default_factory=list[str])
    unpaired: list[str] = field(default_factory=list[str])
    hidden: list[str] = field(default_factory=list[str])
    links: list[str] = field(default_factory=list[str])
    outputs: list[str] = field(default_factory=list[str])
    skipped: list[str] = field(default_factory=list[str])
    sidecars: int = 0
    unread_sidecars: int = 0
    blank_sidecars: int = 0
    columns: dict[str, None] = field(default_factory=dict[str, None])
    unread: dict[str, str] = field(default_factory=dict[str, str])
    remarks: list[str] = field(default_factory=list[str])

    @property
    def maps(self) -> Counter[str]:
        """The number of samples with a map beside them, by its column."""
        return Counter(column for sample in self.samples for column in sample.maps)

    @property
    def unmapped(self) -> dict[str, list[str]]:
        """The names of the samples without such a map, by column, if there are any."""
        found = {
            column: [sample.group for sample in self.samples if column not in sample.maps]
            for column in self.maps
        }
        return {column: names for column, names in found.items() if names}

    @property
    def blank_columns(self) -> list[str]:
        """The columns of captions or values in which no sample has any."""
        filled = {name for sample in self.samples for name in sample.columns}
        others = {*filled, *self.unread, *NO_CAPTIONS}
        return [name for name in self.columns if name not in others]

    @property
    def blank(self) -> bool:
        """Whether there are places for captions, and no sample has a caption in any column."""
        places = (name in CAPTIONS or name.startswith("text_") for name in self.blank_columns)
        captions = any(sample.captions for sample in self.samples)
        return not captions and (self.blank_sidecars > 0 or any(places))

    def add(self, part: Contents, above: str) -> None:
        """Adds the files of a part, but not its samples; above: put before their names."""
        self.unit = part.unit if self.unit == "picture" else self.unit
        self.broken += part.broken
        self.remarks += part.remarks
        self.sidecars += part.sidecars
        self.unread_sidecars += part.unread_sidecars
        self.blank_sidecars += part.blank_sidecars
        self.columns |= part.columns
        self.unread |= part.unread
        for own, names in (
            (self.unlisted, part.unlisted),
            (self.unpaired, part.unpaired),
            (self.hidden, part.hidden),
            (self.links, part.links),
            (self.outputs, part.outputs),
            (self.skipped, part.skipped),
        ):
            own += [above + name for name in names]

    def lists(self) -> list[tuple[str, Sequence[str]]]:
        """Of each kind of unused file the names, after the words for it."""
        texts = [name for name in self.skipped if name.lower().endswith(SIDECARS)]
        return [
            ("not named in the metadata, not used", self.unlisted),
            *((f"without a map in {name}", names) for name, names in self.unmapped.items()),
            ("maps without a picture, not used", self.unpaired),
            ("hidden or system files, not used", self.hidden),
            ("broken or repeated links, not used", self.links),
            ("folders of training runs or generated pictures, not used", self.outputs),
            ("text files without a picture of their name, not used", texts),
            (
                "not read as pictures, not used",
                [name for name in self.skipped if not name.lower().endswith(SIDECARS)],
            ),
        ]

    def counts(self) -> list[str]:
        """A line for captions from files, one for maps, and further ones."""
        used, unread = self.sidecars, self.unread_sidecars
        beside = f"captions of {_number_of(self.unit, used)} are from files beside them"
        lines = [beside] if used else []
        if unread:
            lines.append(f"caption files not read, because the metadata has the captions: {unread}")
        if self.blank_sidecars:
            without = _number_of(self.unit, self.blank_sidecars)
            lines.append(f"caption files without text: those of {without}")
        for column, count in self.maps.items():
            lines.append(f"maps of {_number_of(self.unit, count)}, as column {column}")
        if self.unread:
            columns = [f"{printable(name)} ({kind})" for name, kind in self.unread.items()]
            kinds = "columns without pictures, text or whole numbers, not used"
            lines.append(f"{kinds}: {_listed(columns)}")
        if blank := self.blank_columns:
            lines.append(f"columns without any value: {_listed([*map(printable, blank)])}")
        return [*lines, *self.remarks]

    def notes(self) -> list[str]:
        """A line for each kind of unused file, and those of `counts`."""
        return [*self.counts(), *(f"{what}: {few(names)}" for what, names in self.lists() if names)]


def captions_in(sample: Captioned, fields: Collection[str]) -> dict[str, str]:
    """The captions that a sample has in these columns; "folder" is the name of its folder."""
    known = sample.captions
    if FOLDER in fields and FOLDER not in known and (name := sample.column(FOLDER)):
        known = {**known, FOLDER: name}
    return {field: known[field] for field in fields if field in known}


def alike(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes, (width, height), have the same ratio of sides but for a twentieth."""
    ratios = size[0] * other[1], size[1] * other[0]
    return max(ratios) <= 1.05 * min(ratios)


def caption_column(counts: Mapping[str, int]) -> str:
    """The column of captions that is meant if none is named; "" without any.

    counts: the number of captions in each column. The first of `CAPTIONS` that there is, else the
    column with the most.
    """
    known = [name for name in CAPTIONS if counts.get(name)]
    return next(iter(known or sorted(counts, key=lambda name: (-counts[name], name))), "")


def split_of(row: Row) -> Split | None:
    """The split in a row; None if it names none. Raises LineError for an unknown one."""
    named = text_of(row, "split")
    if not named:
        return None
    if named.lower() not in SPLITS:
        raise LineError(f"split is '{printable(named)}', expected train, validation or test")
    return SPLITS[named.lower()]


def pictures(count: int) -> str:
    """A number of pictures in words."""
    return _number_of("picture", count)


def _number_of(unit: str, count: int) -> str:
    return f"{count} {unit}{'s' if count != 1 else ''}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")


def few(names: Sequence[str]) -> str:
    """The number of names, and the first of them."""
    kinds = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in names)
    more = f", … ({', '.join(f'{n} {kind}' for kind, n in kinds.most_common(FEW))})"
    listed = ", ".join(printable(name) for name in names[:FEW])
    return f"{len(names)}: {listed}{more if len(names) > FEW else ''}"
