"""Data sets in Parquet files: samples of their rows, and the pictures in their columns."""

from __future__ import annotations

import io
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undust.datasets import parquet, shards
from undust.datasets.metadata import LineError, captions_of, faults_of, text_of, values_of
from undust.datasets.parquet import Table
from undust.datasets.samples import Contents, Sample, Split, split_of
from undust.datasets.storage import Storage, Unread, leads_out
from undust.errors import UndustError
from undust.regular import Opened

BLOCK_BYTES, BLOCK_ROWS = 16 << 20, 64  # of pictures that are read together, at most
BLOCKS = 8  # that are kept
LARGE_GROUP = 256 << 20  # bytes of a row group in which pictures are slow to find


def scan(paths: Sequence[Path], folder: Path) -> Contents:
    """The samples of files, in their order; folder: above which their names have no meaning.

    A sample's name, that of its group if it has no concept, is the path that is stored with its
    picture, or else file and row.
    """
    found, storage = Contents(), Pictures()
    names = set[str]()
    for path, split in zip(paths, shards.splits(paths, folder), strict=True):
        try:
            with parquet.opened(path) as file:
                table = Table(path, file)
                _add(found, storage, table, file, split, names)
        except UndustError as error:
            found.broken.append(error)
            continue
        found.unread |= table.unread
        size = max((group.bytes for group in table.groups), default=0)
        if size > LARGE_GROUP:
            found.remarks.append(
                f"{path.name} has row groups of {size / 2**30:.1f} GiB: pictures in random order "
                "are read slowly; row_group_size=100 when it is written would help"
            )
    return found


def _add(
    found: Contents, storage: Pictures, table: Table, file: Any, split: Split, names: set[str]
) -> None:
    """Adds the samples of one file."""
    picture, path = table.picture(), table.path
    maps = [column for column in table.pictures if column != picture]
    faults: dict[str, list[int]] = {}
    for number, row in table.rows(file):
        try:
            if isinstance(row, LineError):
                raise row
            stored = _stored_name(row.get(picture))
            name = f"{path.name}/{number}" if not stored or stored in names else stored
            names.add(name)
            row = {column: row[column] for column in row if column not in table.pictures}
            cells = {column: Cell(table, number, column) for column in table.pictures}
            sample = Sample(
                storage.add(path / f"row {number}" / stored, cells[picture]),
                captions_of(row),
                text_of(row, "concept") or name,
                split_of(row) or split,
                values_of(row),
                maps={
                    column: storage.add(path / f"row {number}, {column}", cells[column])
                    for column in maps
                },
                storage=storage,
            )
            found.samples.append(sample)
            found.columns |= dict.fromkeys(row)
        except LineError as error:
            faults.setdefault(str(error), []).append(number)
    found.broken += faults_of(path, faults, "row")


def _stored_name(picture: object) -> str:
    name = picture.get("path") if isinstance(picture, Mapping) else None
    return name if isinstance(name, str) and not leads_out(name) else ""


@dataclass(frozen=True)
class Cell:
    """One value of a table."""

    table: Table
    row: int
    column: str


class _Reader:
    """Reads a column of one row group in blocks, forwards; its file is open until the last one."""

    def __init__(self, table: Table, group: int, column: str, rows: int) -> None:
        self.place = (table, group)
        self.next = 0
        self._blocks = table.blocks(group, column, rows)
        self._damage = ""

    def block(self, number: int) -> Any:
        """The block of this number, which is `next` or a later one; None after the last.

        Raises UndustError for damage before its end; so it does for all that follow.
        """
        if self._damage:
            raise UndustError(self._damage)
        try:
            for block in self._blocks:
                self.next += 1
                if self.next > number:
                    return block
        except UndustError as error:
            self._damage = str(error)
            raise
        return None

    def close(self) -> None:
        self._blocks.close()


class Pictures(Storage):
    """The pictures of Parquet files.

    Of each column the last blocks are kept, and the place in the row group that is being read, so
    that pictures in order are read once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cells: dict[Path, Cell] = {}
        self._blocks: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        self._readers: dict[str, _Reader] = {}
        self._lock = threading.Lock()

    def add(self, path: Path, cell: Cell) -> Path:
        """Gives a picture a path."""
        self._cells[path] = cell
        return path

    def open(self, path: Path) -> Opened:
        """Opens a picture, which is in memory. Raises UndustError if there is none."""
        if path not in self._cells:
            raise UndustError(f"{path} does not exist")
        try:
            content = self._bytes(self._cells[path])
        except UndustError as error:
            raise UndustError(f"{path}: {error}") from error
        if not content:
            raise UndustError(f"{path} has no bytes")
        return io.BytesIO(content)

    def is_file(self, path: Path) -> bool:
        """Whether there is a picture with this path."""
        return path in self._cells

    def names(self, folder: Path) -> list[str]:  # noqa: ARG002
        """None: there are no folders."""
        return []

    def folder_name(self, path: Path) -> str | None:
        """The name of the folder in the path that is stored with a picture; None without one."""
        above = path.parent.name
        return None if path.name.startswith("row ") or above.startswith("row ") else above

    def walk(self, folder: Path, unread: Unread) -> Iterator[Path]:  # noqa: ARG002
        """The pictures."""
        return iter(self._cells)

    def _bytes(self, cell: Cell) -> bytes | None:
        table, column = cell.table, cell.column
        groups = table.groups
        number = bisect_right(groups, cell.row, key=lambda group: group.first) - 1
        group = groups[number]
        per_row = max(1, group.bytes // (group.end - group.first))
        rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES // per_row))
        block, inside = divmod(cell.row - group.first, rows)
        with self._lock:
            found = self._block(table, group.number, column, rows, block)
        if found is None or inside >= found.num_rows:
            raise UndustError(f"{table.path} ends before row {cell.row}")
        value = found.column(0)[inside].as_py()
        return value.get("bytes") if isinstance(value, dict) else value

    def _block(self, table: Table, group: int, column: str, rows: int, number: int) -> Any:
        """Consecutive values of a column; None after the last."""
        key = (table.path, group, column, number)
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        reader = self._readers.get(column)
        if not reader or reader.place != (table, group) or reader.next > number:
            if reader:
                reader.close()
            reader = self._readers[column] = _Reader(table, group, column, rows)
        self._blocks[key] = reader.block(number)
        if len(self._blocks) > BLOCKS:
            self._blocks.popitem(last=False)
        return self._blocks[key]
