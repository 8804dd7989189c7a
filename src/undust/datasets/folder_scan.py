"""The scan of a folder of pictures, on a disk or in an archive."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path, PurePath

from undust.datasets import files, metadata, parquet
from undust.datasets.metadata import (
    LineError,
    Row,
    captions_of,
    columns_of,
    faults_of,
    json_row,
    text_columns,
    text_of,
    unread_columns,
    values_of,
)
from undust.datasets.pairs import IMAGES, paired
from undust.datasets.samples import SPLITS, Contents, Sample, Split, few, split_of
from undust.datasets.storage import Storage, leads_out
from undust.errors import UndustError, printable
from undust.pictures import suffixes
from undust.regular import as_text, read_text


class FolderScan:
    """The scan of one folder. found: its files; empty: whether there are no pictures, no rows."""

    def __init__(
        self,
        folder: Path,
        storage: Storage,
        split: Split = "train",
        kinds: Collection[str] = (),
    ) -> None:
        """split: of samples for which the folder has none; kinds: as in `files.find`."""
        self.folder, self.storage = folder, storage
        self.split: Split = split
        self.kinds = kinds
        self.files = files.find(folder, storage, kinds)
        self.found = Contents()
        # In each folder the best kind of metadata; below a folder with metadata no other is read.
        self.sources: dict[Path, Path] = {}
        for path in sorted(self.files.metadata, key=lambda path: (len(path.parts), *_rank(path))):
            if path.parent in self.sources or self._source(path.parent.parent):
                self.files.skipped.append(path)
            else:
                self.sources[path.parent] = path
        pictures = [path for path in self.files.pictures if path.suffix.lower() not in kinds]
        self.pairs = paired(folder, pictures)
        if len(pictures) < len(self.files.pictures):
            self.found.unit = "file"
        below = storage.folders(folder)
        for name in below if self.pairs.maps else ():
            if name.lower() in IMAGES:
                below = [*below, *storage.folders(folder / name)]
        self.split_folders = any(SPLITS.get(name.lower()) == "train" for name in below)

    @property
    def empty(self) -> bool:
        """Whether there are neither pictures nor metadata."""
        return not self.sources and not self.files.pictures

    def result(self) -> Contents:
        """The samples, and all other files of the folder. Raises UndustError if it is empty."""
        found, listed = self.found, set[Path]()
        if self.empty:
            raise UndustError(
                f"{self.folder} holds neither {files.METADATA[0]} nor pictures"
                + (f" nor {', '.join(sorted(self.kinds))} files" if self.kinds else "")
                + self._nothing()
            )
        for source in sorted(self.sources.values()):
            listed |= self._listed(source)
        maps = self.pairs.taken
        for path in self.files.pictures:
            if path in maps or path in listed:
                continue
            if self._source(path.parent):
                found.unlisted.append(self._name(path))
            else:
                self._unlisted(path)
        found.samples = [self._with_maps(sample) for sample in found.samples]
        found.unpaired = [self._name(path) for path in self.pairs.unpaired]
        found.hidden = [self._name(path) + _inside(path) for path in self.files.hidden]
        found.links = [self._name(path) for path in self.files.links]
        found.outputs = [self._name(path) + _inside(path) for path in self.files.outputs]
        found.skipped = sorted(self._name(path) for path in self.files.skipped)
        tables = [name for name in found.skipped if name.lower().endswith(files.TABLES)]
        if tables and not self.sources:
            read = ", ".join(files.METADATA)
            found.remarks.append(f"tables not read, as none is called {read}: {few(tables)}")
        return found

    def _unlisted(self, path: Path) -> None:
        """Adds a picture for which there is no metadata but what is beside it."""
        name = self._name(path)
        try:
            row = self._row(path)
            if row:
                self.found.samples.append(self._sample(path.parent, path, path.name, row))
                return
        except LineError as error:
            self.found.broken.append(UndustError(f"{path}: {error}"))
            return
        caption, split = self._caption(path), self._split(path)
        self.found.samples.append(Sample(path, caption, name, split, storage=self.storage))

    def _row(self, picture: Path) -> Row:
        """The columns in the files beside a picture; LineError if one cannot be read."""
        row: dict[str, object] = {}
        for path in self.files.columns.get(picture, ()):
            try:
                text = read_text(path, opened=self.storage.open)
            except UnicodeDecodeError:
                raise LineError(f"{path.name} is not UTF-8") from None
            except (OSError, UndustError) as error:
                raise LineError(f"{path.name} cannot be read: {error}") from None
            if path.suffix.lower() != ".json":
                row.setdefault(path.suffix.lower()[1:], text.strip())
                continue
            try:
                row |= json_row(text.encode())
            except LineError as error:
                raise LineError(f"{path.name} {error}") from None
        return row

    def _with_maps(self, sample: Sample) -> Sample:
        maps = self.pairs.maps.get(sample.path, {}) | self.files.maps.get(sample.path, {})
        return replace(sample, maps=maps) if maps else sample

    def _listed(self, source: Path) -> set[Path]:
        """Reads the rows of one metadata file; the pictures that they name."""
        lines: dict[Path, int] = {}
        named: set[Path] = set()
        faults: dict[str, list[int]] = {}
        read = parquet.rows if source.suffix.lower() == ".parquet" else metadata.rows
        number = 0
        for number, row in read(source, self.storage.open):
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
                named |= self._named(source.parent, row)
            except LineError as error:
                faults.setdefault(str(error), []).append(number)
        if not number and self.files.pictures:
            whole = "without it all pictures in its folder are read"
            self.found.broken.append(UndustError(f"{source} has no rows; {whole}"))
        self.found.broken += faults_of(source, faults, "line")
        return named.union(lines)

    def _named(self, folder: Path, row: Row) -> set[Path]:
        """The pictures that other columns of a row name."""
        texts = (text for text in text_columns(row).values() if self._is_known(text))
        return {path for text in texts if (path := self.storage.find(folder, text))}

    def _sample(self, folder: Path, path: Path, name: str, row: Row) -> Sample:
        captions = captions_of(row)
        self.found.columns |= dict.fromkeys(row)
        self.found.unread |= unread_columns(row)
        if "text" not in captions:
            captions |= self._caption(path)
        elif path in self.files.sidecars:
            self.found.unread_sidecars += 1
        split = split_of(row) or self._split(path)
        below = folder.relative_to(self.folder)
        group = text_of(row, "concept") or as_text((below / name).as_posix())
        return Sample(path, captions, group, split, values_of(row), folder, storage=self.storage)

    def _path(self, folder: Path, name: str, row: Row) -> Path:
        if not name:
            raise LineError(
                "has no file_name, the picture's path in the folder; "
                f"its columns: {columns_of(row)}{self._remedy(folder, row)}"
            )
        return self.storage.inside(folder, name, "file_name")

    def _remedy(self, folder: Path, row: Row) -> str:
        """What would make a row without file_name right, as far as its columns show it."""
        names = [name for name in row if name]
        if "file_name" in names:
            return ""
        if any(self._is_picture_name(folder, name) for name in names):
            return "; the first line has to have the names of the columns"
        texts = text_columns(row)
        meant = [name for name, text in texts.items() if self._is_picture_name(folder, text)]
        if not meant:
            lower = {name.lower(): name for name in names}
            meant = [lower[n] for n in get_close_matches("file_name", lower, n=1, cutoff=0.75)]
        return f"; call {' or '.join(map(printable, meant))} file_name" if meant else ""

    def _is_picture_name(self, folder: Path, text: str) -> bool:
        """Whether a text is the name of a picture in a folder, or looks like one."""
        known = self._is_known(text.replace("\\", "/"))
        return known or (not leads_out(text) and self.storage.find(folder, text) is not None)

    def _is_known(self, name: str) -> bool:
        """Whether a file is a picture, or of a further kind, by its name."""
        ending = PurePath(name).suffix.lower()
        return ending in suffixes() or ending in self.kinds

    def _caption(self, picture: Path) -> dict[str, str]:
        """The text of the file beside a picture, its lines joined; empty if there is none."""
        blank = 0
        for path in self.files.sidecars.get(picture, ()):
            try:
                text = " ".join(read_text(path, opened=self.storage.open).split())
            except UnicodeDecodeError:
                self.found.broken.append(UndustError(f"{path} is not UTF-8"))
            except (OSError, UndustError) as error:
                self.found.broken.append(UndustError(f"{path} cannot be read: {error}"))
            else:
                if text:
                    self.found.sidecars += 1
                    return {"text": text}
                blank = 1
        self.found.blank_sidecars += blank
        return {}

    def _split(self, path: Path) -> Split:
        first, *rest = (part.lower() for part in path.relative_to(self.folder).parts)
        if self.pairs.maps and first in IMAGES and len(rest) > 1:
            first = rest[0]
        if self.split_folders:
            return SPLITS.get(first, "train")
        return self.split

    def _source(self, folder: Path) -> Path | None:
        """The metadata of a folder, or of the nearest one above it in the data set."""
        for each in (folder, *folder.parents):
            if each in self.sources:
                return self.sources[each]
            if each == self.folder:
                break
        return None

    def _name(self, path: Path) -> str:
        return as_text(path.relative_to(self.folder).as_posix())

    def _nothing(self) -> str:
        of = self.files
        others = [self._name(path) for path in (*of.skipped, *of.links, *of.outputs, *of.hidden)]
        return f" that can be read; files and links there: {few(others)}" if others else ""


def _rank(path: Path) -> tuple[int, str]:
    return files.METADATA.index(path.name.lower()), str(path)


def _inside(path: Path) -> str:
    """The number of files in a folder, to show after its name; "" for a file."""
    if not path.is_dir():
        return ""
    count = sum(len(names) for _, _, names in os.walk(path))
    return f"/ ({count} file{'s' if count != 1 else ''})"
