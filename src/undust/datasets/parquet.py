"""Parquet files with pictures in a column, as Hugging Face's `datasets` writes them.

The texts and numbers of all rows are read at once, pictures when they are asked for, a few
megabytes at a time. pyarrow (the extra `parquet`) reads the files.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from undust.datasets.metadata import LineError, Row
from undust.errors import UndustError, printable
from undust.regular import Opener, open_regular

ROWS = 4096  # that are read together
BUFFER = 1 << 20  # bytes
USUAL = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "pixel_values")


@contextmanager
def opened(path: Path, opener: Opener = open_regular, footer: object = None) -> Generator[Any]:
    """Yields pyarrow's ParquetFile. Errors of reading within are raised as UndustErrors.

    footer: its metadata, if they have been read already.
    """
    try:
        import_module("pyarrow")
        package = import_module("pyarrow.parquet")
    except ImportError as error:
        raise UndustError(f"{path} needs pyarrow: pip install 'undust[parquet]'") from error
    try:
        with (
            opener(path) as raw,
            package.ParquetFile(raw, metadata=footer, buffer_size=BUFFER) as file,
        ):
            yield file
    except UndustError:
        raise
    except Exception as error:  # pyarrow's own and others, depending on the damage
        reason = str(error).partition("\n")[0]
        raise UndustError(f"{path} cannot be read as Parquet: {reason}") from error


def rows(path: Path, opener: Opener = open_regular) -> Iterator[tuple[int, Row | LineError]]:
    """The rows of a table, numbered from 1, as `metadata.rows`."""
    with opened(path, opener) as file:
        for number, row in Table(path, file).rows(file):
            yield number + 1, row


@dataclass(frozen=True)
class Group:
    """A row group: its number, its first row, that of the next, and its bytes."""

    number: int
    first: int
    end: int
    bytes: int


class Table:
    """The columns of a Parquet file.

    values: those with text and whole numbers; pictures: those with pictures, in the order of the
    file, of which `structs` have bytes and path as fields; unread: all others, with their types.
    groups: its row groups.
    """

    def __init__(self, path: Path, file: Any) -> None:
        """file: pyarrow's ParquetFile."""
        self.path, self.footer = path, file.metadata
        types = import_module("pyarrow").types
        self.values: list[str] = []
        self.pictures: list[str] = []
        self.structs: set[str] = set()
        self.unread: dict[str, str] = {}
        self._classes = _classes(file.schema_arrow.metadata or {})
        for column in file.schema_arrow:
            inner = column.type.value_type if types.is_dictionary(column.type) else column.type
            if types.is_struct(inner) and _binary(types, inner, "bytes"):
                self.pictures.append(column.name)
                self.structs.add(column.name)
            elif _is_binary(types, inner):
                self.pictures.append(column.name)
            elif _is_text(types, inner) or types.is_integer(inner) or types.is_null(inner):
                self.values.append(column.name)
            else:
                self.unread[column.name] = printable(column.type)
        self.groups = _groups(file.metadata)

    def picture(self) -> str:
        """The column of the pictures; any other with pictures has maps. UndustError if unclear."""
        among = [name for name in self.pictures if name in self.structs] or self.pictures
        usual = [name for name in USUAL if name in among]
        if len(among) == 1 or usual:
            return usual[0] if usual else among[0]
        if among:
            listed = ", ".join(map(printable, among))
            raise UndustError(
                f"{self.path} has several columns of pictures, {listed}; call that of the pictures "
                "image"
            )
        unread = [f"{printable(name)} ({kind})" for name, kind in self.unread.items()]
        columns = ", ".join([*map(printable, self.values), *unread])
        named = ""
        if any("file" in name.lower() for name in self.values):
            named = "; a table with file_name is metadata.parquet in the folder of the pictures"
        raise UndustError(
            f"{self.path} has no column of pictures: bytes, or a struct that has bytes; its "
            f"columns: {columns or 'none'}{named}"
        )

    def rows(self, file: Any) -> Iterator[tuple[int, Row | LineError]]:
        """The number of each row from 0, and its values; of pictures with a path, the path."""
        with_path = [f"{name}.path" for name in self.structs if _has_path(file, name)]
        columns = [*self.values, *with_path]
        if not columns:
            yield from ((number, {}) for number in range(self.footer.num_rows))
            return
        number = 0
        for batch in file.iter_batches(batch_size=ROWS, columns=columns, use_threads=False):
            for row in _decoded(batch):
                yield number, row if isinstance(row, LineError) else self._named(row)
                number += 1

    def blocks(self, group: int, column: str, rows: int) -> Generator[Any]:
        """A column of pictures in one row group, some rows at a time."""
        name = f"{column}.bytes" if column in self.structs else column
        with opened(self.path, footer=self.footer) as file:
            yield from file.iter_batches(
                batch_size=rows, row_groups=[group], columns=[name], use_threads=False
            )

    def _named(self, row: Row) -> Row:
        """A row with the names of classes in the place of their numbers."""
        found = dict(row)
        for column, names in self._classes.items():
            number = found.get(column)
            if isinstance(number, int):
                found[column] = names[number] if 0 <= number < len(names) else None
        return found


def _groups(footer: Any) -> list[Group]:
    """The row groups that have rows."""
    found: list[Group] = []
    first = 0
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        if group.num_rows > 0:
            found.append(Group(number, first, first + group.num_rows, group.total_byte_size))
            first += group.num_rows
    return found


def _decoded(batch: Any) -> list[Row | LineError]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [LineError("is not UTF-8")]
        return [row for k in range(batch.num_rows) for row in _decoded(batch.slice(k, 1))]


def _classes(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The names of classes by column, as `datasets` stores them."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in cast("Mapping[str, Any]", features).items()
            if isinstance(feature, Mapping) and cast("Any", feature).get("_type") == "ClassLabel"
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _has_path(file: Any, column: str) -> bool:
    types = import_module("pyarrow").types
    kind = file.schema_arrow.field(column).type
    index = kind.get_field_index("path")
    return index >= 0 and _is_text(types, kind.field(index).type)


def _binary(types: Any, kind: Any, field: str) -> bool:
    index = kind.get_field_index(field)
    return index >= 0 and _is_binary(types, kind.field(index).type)


def _is_binary(types: Any, kind: Any) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_text(types: Any, kind: Any) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
