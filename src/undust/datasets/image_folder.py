"""Folders of pictures with captions.

Three layouts are read. With a `metadata.jsonl` or `metadata.csv` (the convention of Hugging Face's
`imagefolder`) the pictures are those that its rows name: `file_name` (relative to its folder), the
columns of captions (`text`, or any other), and optionally `concept` (pictures of one concept share
their turn in training) and `split`. There may also be such a file in each subfolder. Without one,
all pictures in the folder and below are read, each with the caption in a file beside it:
`cat.txt` or `cat.caption` for `cat.png`. Beside a folder `train`, folders such as `test` and
`validation` are splits.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Literal

from PIL import Image

from undust.datasets import files
from undust.datasets.metadata import (
    LineError,
    Row,
    captions_of,
    columns_of,
    rows,
    text_of,
    values_of,
)
from undust.errors import UndustError, printable
from undust.formats.files import atomic_write
from undust.pictures import check_header, conversions, read_image, suffixes
from undust.regular import read_text

METADATA = "metadata.jsonl"
Split = Literal["train", "validation", "test"]
SPLITS: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
NO_CAPTIONS = ("file_name", "concept", "split")  # columns with another meaning
FOLDER = "folder"  # the name of a column that each picture has: the name of its folder
FEW = 5  # names in a note


@dataclass(frozen=True)
class Sample:
    """One picture: its file, its captions by column (`text`, `text_ko`, …), its group and split.

    columns: all text and whole numbers of its row in the metadata; place: the metadata's folder.
    """

    path: Path
    captions: Mapping[str, str]
    group: str
    split: Split = "train"
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    place: Path | None = None

    def image(self) -> Image.Image:
        """Reads the picture; raises UndustError as `read_image`."""
        return read_image(self.path)

    def column(self, name: str) -> str | None:
        """The text or number in a column, "folder" for the folder's name; None if absent."""
        return self.path.parent.name if name == FOLDER else self.columns.get(name)

    def beside(self, column: str) -> Image.Image:
        """Reads the picture in the file that a column names; raises UndustError as `read_image`.

        Also if there is no such file in the metadata's folder.
        """
        name = self.columns.get(column, "")
        if self.place is None or not name:
            raise UndustError(f"{self.path} has no {printable(column)} in its metadata")
        try:
            found = files.FileFinder().inside(self.place, name, column)
        except LineError as error:
            raise UndustError(f"{self.path}: {error}") from None
        return read_image(found)


@dataclass
class FolderContents:
    """The content of a folder of pictures.

    samples: in the order of the metadata's rows, without metadata in the order of names. broken: an
    error for each row or caption file that cannot be used. unlisted: pictures that the metadata
    beside or above them does not name. sidecars: the number of captions from files beside the
    pictures; unread_sidecars: of such files that are not read because the metadata has the caption.
    hidden, links, skipped: as `Files` has them.
    """

    samples: list[Sample] = field(default_factory=list[Sample])
    broken: list[UndustError] = field(default_factory=list[UndustError])
    unlisted: list[str] = field(default_factory=list[str])
    hidden: list[str] = field(default_factory=list[str])
    links: list[str] = field(default_factory=list[str])
    skipped: list[str] = field(default_factory=list[str])
    sidecars: int = 0
    unread_sidecars: int = 0

    def notes(self) -> list[str]:
        """A line for each kind of unused file, and for captions from files."""
        used, unread = self.sidecars, self.unread_sidecars
        return [
            note
            for count, note in (
                (used, f"captions of {_pictures(used)} are from files beside them"),
                (
                    unread,
                    f"caption files not read, because the metadata has the captions: {unread}",
                ),
                (len(self.unlisted), f"not named in the metadata, not used: {_few(self.unlisted)}"),
                (len(self.hidden), f"hidden or system files, not used: {_few(self.hidden)}"),
                (len(self.links), f"broken or repeated links, not used: {_few(self.links)}"),
                (len(self.skipped), f"not read as pictures: {_few(self.skipped)}"),
            )
            if count
        ]


def read(
    folder: Path | str,
    *,
    split: Split | None = None,
    on_error: Literal["refuse", "skip"] = "refuse",
) -> list[Sample]:
    """The samples of a folder, of one `split` or all; see `scan`.

    on_error: with "refuse" a wrong row raises an UndustError that names it, and so does a file
    whose header is not of a readable picture. With "skip" both are left out, and pictures that
    cannot be decoded, for which each is decoded once.
    """
    return usable(scan(folder), split=split, on_error=on_error)


def usable(
    found: FolderContents,
    *,
    split: Split | None = None,
    on_error: Literal["refuse", "skip"] = "refuse",
) -> list[Sample]:
    """The samples that can be used; the options are those of `read`."""
    if on_error == "refuse" and found.broken:
        raise found.broken[0]
    check = check_header if on_error == "refuse" else read_image
    samples: list[Sample] = []
    for sample in found.samples:
        if split not in (None, sample.split):
            continue
        try:
            check(sample.path)
        except UndustError:
            if on_error == "refuse":
                raise
        else:
            samples.append(sample)
    return samples


def scan(folder: Path | str) -> FolderContents:
    """Lists a folder without opening pictures. Raises UndustError for one without pictures."""
    folder = Path(folder)
    if not folder.is_dir():
        wrong = "is not a folder of pictures" if folder.exists() else "does not exist"
        raise UndustError(f"{folder} {wrong}")
    return _Scan(folder).result()


def write(folder: Path | str, rows: Iterable[Mapping[str, str]]) -> None:
    """Writes metadata.jsonl, one row a line, whole or not at all."""
    lines = (json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    atomic_write(Path(folder) / METADATA, "".join(lines).encode())


@dataclass
class FolderReport:
    """The result of `check`.

    Numbers of pictures by split and by size (width, height); of captions by column, and of their
    lengths in characters; of groups; an error for each broken file or row; numbers of colour
    conversions; and the folder's contents.
    """

    folder: FolderContents
    samples: list[Sample] = field(default_factory=list[Sample])
    splits: Counter[str] = field(default_factory=Counter[str])
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])
    captions: Counter[str] = field(default_factory=Counter[str])
    lengths: dict[str, Counter[int]] = field(default_factory=dict[str, Counter[int]])
    groups: int = 0
    broken: list[str] = field(default_factory=list[str])
    conversions: Counter[str] = field(default_factory=Counter[str])

    @property
    def pictures(self) -> int:
        """The number of pictures that can be used."""
        return self.splits.total()


def check(
    folder: Path | str, observe: Callable[[int, int], None] = lambda _done, _all: None
) -> FolderReport:
    """Reads all of a data set, decodes every picture, and reports contents and errors.

    observe: called with the number of pictures decoded, and of all.
    """
    report = FolderReport(scan(folder))
    report.broken = [str(error) for error in report.folder.broken]
    for done, sample in enumerate(report.folder.samples):
        observe(done, len(report.folder.samples))
        try:
            report.sizes[read_image(sample.path).size] += 1
            report.conversions.update(conversions(sample.path))
        except UndustError as error:
            report.broken.append(str(error))
            continue
        report.samples.append(sample)
        report.splits[sample.split] += 1
        for key, caption in sample.captions.items():
            report.captions[key] += 1
            report.lengths.setdefault(key, Counter())[len(caption)] += 1
    report.groups = len({sample.group for sample in report.samples})
    return report


class _Scan:
    """The scan of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files, self.names = folder, files.find(folder), files.FileFinder()
        self.found = FolderContents()
        # In each folder the best kind of metadata; below a folder with metadata no other is read.
        self.sources: dict[Path, Path] = {}
        for path in sorted(self.files.metadata, key=lambda path: (len(path.parts), *_rank(path))):
            if path.parent in self.sources or self._source(path.parent.parent):
                self.files.skipped.append(path)
            else:
                self.sources[path.parent] = path
        below = {path.name.lower() for path in folder.iterdir() if path.is_dir()}
        self.split_folders = any(SPLITS.get(name) == "train" for name in below)

    def result(self) -> FolderContents:
        """The samples, and all other files of the folder."""
        found, listed = self.found, set[Path]()
        if not self.sources and not self.files.pictures:
            raise UndustError(
                f"{self.folder} holds neither {METADATA} nor pictures" + self._nothing()
            )
        for source in sorted(self.sources.values()):
            listed |= self._listed(source)
        for path in self.files.pictures:
            name = self._name(path)
            if not self._source(path.parent):
                found.samples.append(Sample(path, self._caption(path), name, self._split(path)))
            elif path not in listed:
                found.unlisted.append(name)
        found.hidden = [self._name(path) + _inside(path) for path in self.files.hidden]
        found.links = [self._name(path) for path in self.files.links]
        found.skipped = sorted(self._name(path) for path in self.files.skipped)
        return found

    def _listed(self, source: Path) -> set[Path]:
        """Reads the rows of one metadata file; the pictures that they name."""
        lines: dict[Path, int] = {}
        named: set[Path] = set()
        faults: dict[str, list[int]] = {}
        for number, row in rows(source):
            try:
                if isinstance(row, LineError):
                    raise row
                name = text_of(row, "file_name")
                path = self._path(source.parent, name, row)
                if path in lines:
                    earlier = path.relative_to(source.parent).as_posix()
                    raise LineError(f"file_name {earlier!r} is already on line {lines[path]}")
                lines[path] = number
                self.found.samples.append(self._sample(source.parent, path, name, row))
                named |= self._maps(source.parent, row)
            except LineError as error:
                faults.setdefault(str(error), []).append(number)
        for fault, numbers in faults.items():
            where = f"line {numbers[0]}"
            if len(numbers) > 1:
                where = f"lines {', '.join(map(str, numbers[:FEW]))}"
            if len(numbers) > FEW:
                where += f" and {len(numbers) - FEW} more"
            self.found.broken.append(UndustError(f"{source} {where}: {fault}"))
        return named.union(lines)

    def _maps(self, folder: Path, row: Row) -> set[Path]:
        """The pictures that other columns of a row name."""
        texts = (
            text
            for text in captions_of(row).values()
            if PurePath(text).suffix.lower() in suffixes()
        )
        return {path for text in texts if (path := self.names.find(folder, text))}

    def _sample(self, folder: Path, path: Path, name: str, row: Row) -> Sample:
        for column in row:
            if column == "text" or column.startswith("text_"):
                text_of(row, column)
        captions = {k: text for k, text in captions_of(row).items() if k not in NO_CAPTIONS}
        if "text" not in captions:
            captions |= self._caption(path)
        elif path in self.files.sidecars:
            self.found.unread_sidecars += 1
        named = text_of(row, "split")
        split = SPLITS.get(named.lower()) if named else self._split(path)
        if split is None:
            raise LineError(f"split is '{printable(named)}', expected train, validation or test")
        below = folder.relative_to(self.folder)
        group = text_of(row, "concept") or (below / name).as_posix()
        return Sample(path, captions, group, split, values_of(row), folder)

    def _path(self, folder: Path, name: str, row: Row) -> Path:
        if not name:
            raise LineError(
                "has no file_name, the picture's path in the folder; "
                f"its columns: {columns_of(row)}"
            )
        return self.names.inside(folder, name, "file_name")

    def _caption(self, picture: Path) -> dict[str, str]:
        """The text of the file beside a picture, its lines joined; empty if there is none."""
        for path in self.files.sidecars.get(picture, ()):
            try:
                text = " ".join(read_text(path).split())
            except UnicodeDecodeError:
                self.found.broken.append(UndustError(f"{path} is not UTF-8"))
            except (OSError, UndustError) as error:
                self.found.broken.append(UndustError(f"{path} cannot be read: {error}"))
            else:
                if text:
                    self.found.sidecars += 1
                    return {"text": text}
        return {}

    def _split(self, path: Path) -> Split:
        first = path.relative_to(self.folder).parts[0].lower()
        return SPLITS.get(first, "train") if self.split_folders else "train"

    def _source(self, folder: Path) -> Path | None:
        """The metadata of a folder, or of the nearest one above it in the data set."""
        for each in (folder, *folder.parents):
            if each in self.sources:
                return self.sources[each]
            if each == self.folder:
                break
        return None

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _nothing(self) -> str:
        of = self.files
        others = [self._name(path) for path in (*of.skipped, *of.links, *of.hidden)]
        return f" that can be read; files and links there: {_few(others)}" if others else ""


def _rank(path: Path) -> tuple[int, str]:
    return files.METADATA.index(path.name.lower()), str(path)


def _inside(path: Path) -> str:
    """The number of files in a folder, to show after its name; "" for a file."""
    if not path.is_dir():
        return ""
    count = sum(len(names) for _, _, names in os.walk(path))
    return f"/ ({count} file{'s' if count != 1 else ''})"


def _pictures(count: int) -> str:
    return f"{count} picture{'s' if count != 1 else ''}"


def _few(names: Sequence[str]) -> str:
    """The number of names, and the first of them."""
    kinds = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in names)
    more = f", … ({', '.join(f'{n} {kind}' for kind, n in kinds.most_common(FEW))})"
    listed = ", ".join(printable(name) for name in names[:FEW])
    return f"{len(names)}: {listed}{more if len(names) > FEW else ''}"
