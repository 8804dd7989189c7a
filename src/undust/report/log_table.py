"""The log of a run as columns of numbers."""

from __future__ import annotations

import json
import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from undust.errors import UndustError, printable
from undust.regular import open_regular

MAX_LINE = 2**20  # bytes
MAX_COLUMNS = 64
MAX_NAME = 300  # characters
MAX_STEP = 2**53  # beyond it JavaScript's numbers have gaps

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """The finite values of one quantity, at rising steps; not_finite: the number of others."""

    steps: Numbers
    values: Numbers
    not_finite: int = 0

    @property
    def last(self) -> float:
        """The newest value."""
        return float(self.values[-1])


@dataclass
class LogTable:
    """Columns by name, in the order in which they first appear. notes: on what is not shown."""

    columns: dict[str, Column] = field(default_factory=dict[str, Column])
    rows: int = 0
    notes: list[str] = field(default_factory=list[str])

    @property
    def step(self) -> int:
        """The last logged step."""
        return max((int(column.steps[-1]) for column in self.columns.values()), default=0)


def read(path: Path) -> LogTable:
    """Reads a log as far as its lines are whole; an absent one has no columns.

    Raises UndustError for a file that cannot be read.
    """
    table, found = LogTable(), dict[str, _Growing]()
    if not path.exists():
        return table
    broken, without = 0, set[str]()
    try:
        with open_regular(path) as file:
            while line := file.readline(MAX_LINE):
                row = _row(line)
                if row is None:
                    broken += bool(line.strip())
                    continue
                table.rows += 1
                step = row.pop("step")
                for long_name, value in row.items():
                    name = long_name[:MAX_NAME]
                    if isinstance(value, bool) or not isinstance(value, int | float):
                        continue
                    if name not in found and len(found) >= MAX_COLUMNS:
                        without.add(name) if len(without) < MAX_COLUMNS else None
                        continue
                    found.setdefault(name, _Growing()).add(step, value)
    except OSError as error:
        raise UndustError(f"{path} cannot be read: {error.strerror}") from error
    table.columns = {name: made for name, grown in found.items() if (made := grown.column())}
    if broken:
        lines = "1 line that is" if broken == 1 else f"{broken:,} lines that are"
        table.notes.append(f"{path.name} has {lines} not a row of a step, such as a cut one")
    if without:
        first = ", ".join(printable(name) for name in sorted(without)[:5])
        table.notes.append(f"{path.name} has over {MAX_COLUMNS} quantities; without {first}, …")
    empty = [name for name, grown in found.items() if name not in table.columns and grown.wrong]
    table.notes += [f"{printable(name)} has no finite value" for name in empty]
    return table


class _Growing:
    """A column while it is read."""

    def __init__(self) -> None:
        self.steps, self.values = array("d"), array("d")
        self.wrong = 0

    def add(self, step: int, value: float) -> None:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.wrong += 1
            return
        self.steps.append(step)
        self.values.append(number)

    def column(self) -> Column | None:
        if not self.steps:
            return None
        steps, values = np.asarray(self.steps), np.asarray(self.values)
        if (np.diff(steps) <= 0).any():  # of two rows of a step the later one counts
            steps, places = np.unique(steps[::-1], return_index=True)
            values = values[::-1][places]
        return Column(steps, values, self.wrong)


def _row(line: bytes) -> dict[str, Any] | None:
    """The object in a line that has a step; None for another."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    found = cast("dict[str, Any]", row)
    step = found.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= MAX_STEP:
        return None
    return found
