"""Rows of a data set's metadata, from JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from undust.errors import UndustError, printable
from undust.regular import Opener, in_utf8, open_regular

Row = Mapping[str, Any]
NO_CAPTIONS = ("file_name", "concept", "split")  # columns with another meaning
FEW = 5  # names or numbers in a note


class LineError(ValueError):
    """The error of a line, without its file and number."""


def rows(path: Path, opened: Opener = open_regular) -> Iterator[tuple[int, Row | LineError]]:
    """The number of each line that is not empty, with its values or its error.

    path: metadata.jsonl, with one JSON object a line, or metadata.csv, with the names of columns in
    the first line. Raises UndustError for a file that cannot be read.
    """
    try:
        with opened(path) as file:
            content = in_utf8(file.read())
    except OSError as error:
        raise UndustError(f"cannot read {path}: {error.strerror}") from error
    read = _csv_rows if path.suffix.lower() == ".csv" else _json_rows
    yield from read(content)


def text_of(row: Row, name: str) -> str:
    """The text in a column; "" if it is absent or null, as in tables exported with gaps.

    Raises LineError for another kind of value.
    """
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise LineError(f"{name} is {_kind(value)}, not a string")
    if not _is_whole(value):
        raise LineError(f"{name} holds half of a surrogate pair, which is no character")
    return value


def captions_of(row: Row) -> dict[str, str]:
    """The columns with captions: all with text, but for those with another meaning.

    Raises LineError for `text` or `text_…` that is not a string.
    """
    for column in row:
        if column == "text" or column.startswith("text_"):
            text_of(row, column)
    return {name: text for name, text in text_columns(row).items() if name not in NO_CAPTIONS}


def faults_of(path: Path, faults: Mapping[str, Sequence[int]], unit: str) -> list[UndustError]:
    """An error for each fault of a file, with the numbers of the lines or rows that have it."""
    errors: list[UndustError] = []
    for fault, numbers in faults.items():
        where = f"{unit} {numbers[0]}"
        if len(numbers) > 1:
            where = f"{unit}s {', '.join(map(str, numbers[:FEW]))}"
        if len(numbers) > FEW:
            where += f" and {len(numbers) - FEW} more"
        errors.append(UndustError(f"{path} {where}: {fault}"))
    return errors


def text_columns(row: Row) -> dict[str, str]:
    """All columns with text, by name, except for empty text and text of spaces."""
    texts = {name: value for name, value in row.items() if isinstance(value, str) and value.strip()}
    return {name: value for name, value in texts.items() if _is_whole(value) and _is_whole(name)}


def values_of(row: Row) -> dict[str, str]:
    """All columns with text or a whole number, as text."""
    numbers = {name: str(value) for name, value in row.items() if type(value) is int}
    return {name: value for name, value in numbers.items() if _is_whole(name)} | text_columns(row)


def unread_columns(row: Row) -> dict[str, str]:
    """The columns of which nothing is read, and the kind of their values."""
    read = type(None), str, int
    return {name: _kind(each) for name, each in row.items() if type(each) not in read}


def _json_rows(content: bytes) -> Iterator[tuple[int, Row | LineError]]:
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            try:
                yield number, json_row(line)
            except LineError as error:
                yield number, error


def json_row(line: bytes) -> Row:
    """The object in JSON; LineError for anything else."""
    try:
        fields: object = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_named_once)
    except LineError:
        raise
    except UnicodeDecodeError as error:
        raise LineError("is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise LineError(f"is not JSON: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        raise LineError(f"is not JSON that can be read: {error}") from error
    if not isinstance(fields, dict):
        raise LineError(f"is {_kind(fields)}, not an object")
    return cast(Row, fields)


def _named_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; LineError if it has a name twice, of which json takes the last."""
    named = dict(pairs)
    if len(named) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise LineError(f"names {printable(twice)} twice")
    return named


def _csv_rows(content: bytes) -> Iterator[tuple[int, Row | LineError]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield content[: error.start].count(b"\n") + 1, LineError("is not UTF-8")
        return
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    number = 1
    while True:
        try:
            values = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            yield max(number, 1), LineError(f"is not a line of a table: {error}")
            return  # where the next one begins is not known
        if not any(values):
            pass
        elif columns is None:
            columns = [name.strip() for name in values]
            named = [name for name in columns if name]  # an index often has none
            if len(set(named)) < len(named):
                yield number, LineError("names a column twice")
                return
            if len(columns) == 1 and (mark := re.search(r"[;\t|]", columns[0])):
                apart = "tabs" if mark[0] == "\t" else f"'{mark[0]}'"
                yield (
                    number,
                    LineError(f"has {apart} between the names of columns; commas are read"),
                )
                return
        elif len(values) != len(columns):
            yield (
                number,
                LineError(f"has {len(values)} values, and the first line {len(columns)} columns"),
            )
        else:
            pairs = zip(columns, values, strict=True)
            yield number, {name: value for name, value in pairs if name}
        number = lines.line_num + 1


def _is_whole(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"


def columns_of(row: Row) -> str:
    """The names of a row's columns, for an error."""
    return ", ".join(printable(name) for name in [*row][:20]) or "none"
