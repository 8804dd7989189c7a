"""The charts of a log: which quantities belong together, smoothed, and thinned for a page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from undust.report.log_table import Column, Numbers

MAX_POINTS = 1200  # of a line
SMOOTHED_FROM = 20  # points
WINDOW = 0.03  # share of the points over which a line is smoothed
LOGARITHMIC_FROM = 30.0  # ratio of the largest value to the smallest
DIGITS = 5
WIDTH, HEIGHT = 1000.0, 200.0  # of a drawing without scripts
TITLES = {
    "loss": "Loss",
    "gradient_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "seconds": "Seconds per step",
    "memory": "Peak memory, GiB",
}
WORDS = {"kl": "KL", "vq": "VQ"}
HIDDEN = {"time"}
VALIDATION = "validation_"

Role = Literal["raw", "smooth", "line", "points"]


@dataclass(frozen=True)
class Series:
    """One line of a chart. values: at the chart's steps, None where it has none."""

    name: str
    role: Role
    colour: int
    values: tuple[float | None, ...]

    @property
    def last(self) -> float:
        """The newest value."""
        return next(value for value in reversed(self.values) if value is not None)


@dataclass(frozen=True)
class Chart:
    """Series over the same steps.

    basis: of a figure, its pictures and sizes; span: first and last step of all charts of a run.
    """

    title: str
    basis: str
    span: tuple[int, int]
    steps: tuple[int, ...]
    series: tuple[Series, ...]
    thinned: bool
    not_finite: int

    @property
    def low(self) -> float:
        """The lowest value."""
        return min(value for each in self.series for value in each.values if value is not None)

    @property
    def high(self) -> float:
        """The highest value."""
        return max(value for each in self.series for value in each.values if value is not None)

    @property
    def positive(self) -> bool:
        """Whether it can have a logarithmic axis."""
        return self.low > 0

    @property
    def logarithmic(self) -> bool:
        """Whether it has one at first; a learning rate shows its schedule without."""
        wide = self.title != TITLES["learning_rate"]
        return wide and self.positive and self.high / self.low >= LOGARITHMIC_FROM

    @property
    def paths(self) -> list[tuple[Series, str, list[tuple[float, float]]]]:
        """Each series as an SVG path, and the places of its points, in WIDTH × HEIGHT."""
        first, last = self.span
        scaled = np.log if self.logarithmic else np.asarray
        low, high = float(scaled(self.low)), float(scaled(self.high))
        found: list[tuple[Series, str, list[tuple[float, float]]]] = []
        for each in self.series:
            places = [
                (
                    round(WIDTH * (step - first) / max(1, last - first), 1),
                    round(HEIGHT * (high - float(scaled(value))) / ((high - low) or 1), 1),
                )
                for step, value in zip(self.steps, each.values, strict=True)
                if value is not None
            ]
            line = "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
            found.append((each, line, places if each.role == "points" else []))
        return found


def charts(columns: Mapping[str, Column], points: int = MAX_POINTS) -> list[Chart]:
    """The charts of a log: losses, figures, then the course of the training.

    points: of a line at most.
    """
    names = [name for name in columns if name not in HIDDEN]
    groups: dict[str, list[str]] = {"loss": []}
    for name in names:
        groups.setdefault(_group(name, columns), []).append(name)
    order = [*TITLES, ""]
    place = {name: order.index(name if name in TITLES else "") for name in groups}
    place |= {name: 0.5 for name in groups if name not in TITLES}
    ranked = sorted(groups, key=lambda name: place[name])
    ends = [column.steps[place] for column in columns.values() for place in (0, -1)]
    span = int(min(ends, default=0)), int(max(ends, default=0))
    for found in groups.values():
        found.sort(key=lambda name: name.startswith(VALIDATION))  # the training's colour is first
    return [_chart(name, groups[name], columns, span, points) for name in ranked if groups[name]]


def _group(name: str, columns: Mapping[str, Column]) -> str:
    """The name of the chart that a quantity belongs to."""
    plain = name.removeprefix(VALIDATION)
    if plain != name and (plain in columns or plain == "loss"):
        return plain
    for kind in ("gradient_norm", "learning_rate", "memory"):
        if name == kind or name.startswith(f"{kind}_"):
            return kind
    return name


def _chart(
    group: str,
    names: Sequence[str],
    columns: Mapping[str, Column],
    span: tuple[int, int],
    points: int,
) -> Chart:
    lines: list[tuple[str, Role, int, Column]] = []
    alone = sum(not name.startswith(VALIDATION) for name in names) == 1
    for colour, name in enumerate(names):
        column, label = columns[name], _label(name, group, alone=alone)
        if name.startswith(VALIDATION) or "," in name:
            lines.append((label, "points", colour, column))
        elif group in ("learning_rate", "memory") or len(column.steps) < SMOOTHED_FROM:
            lines.append((label, "line", colour, column))
        else:
            smooth = Column(column.steps, smoothed(column.values))
            lines.append((label, "raw", colour, column))
            also = "smoothed" if alone else f"{label}, smoothed"
            lines.append((also, "smooth", colour, smooth))
    kept = {id(column): thinned(column.values, points) for _, _, _, column in lines}
    steps = np.unique(np.concatenate([column.steps[kept[id(column)]] for _, _, _, column in lines]))
    title, basis = title_of(group)
    return Chart(
        title,
        basis,
        span,
        tuple(int(step) for step in steps),
        tuple(
            Series(label, role, colour, tuple(_at(steps, column)))
            for label, role, colour, column in lines
        ),
        any(len(kept[id(column)]) < len(column.values) for _, _, _, column in lines),
        sum(columns[name].not_finite for name in names),
    )


def _at(steps: Numbers, column: Column) -> Iterator[float | None]:
    """The column's values at these steps, rounded; None where it has none."""
    places = np.searchsorted(column.steps, steps).clip(max=len(column.steps) - 1)
    here = column.steps[places] == steps
    for value, known in zip(column.values[places].tolist(), here.tolist(), strict=True):
        yield float(f"{value:.{DIGITS}g}") if known else None


def thinned(values: Numbers, most: int) -> NDArray[np.intp]:
    """The indices of at most `most` values: first, last, and each part's lowest and highest."""
    size = len(values)
    if size <= most:
        return np.arange(size)
    edges = np.linspace(0, size, (most - 2) // 2 + 1).astype(int)
    found = [0, size - 1]
    for start, end in pairwise(edges.tolist()):
        part = values[start:end]
        found += [start + int(part.argmin()), start + int(part.argmax())]
    return np.unique(found)


def smoothed(values: Numbers) -> Numbers:
    """The mean of each value and those before it, with weights that fall exponentially.

    The weights of the values that there are so far add up to 1 (Kingma & Ba 2015, section 3).
    """
    decay = 1 - 1 / max(2.0, WINDOW * len(values))
    total = weight = 0.0
    result = np.empty_like(values)
    for place, value in enumerate(values.tolist()):
        total = decay * total + (1 - decay) * value
        weight = decay * weight + 1 - decay
        result[place] = total / weight
    return result


def title_of(name: str) -> tuple[str, str]:
    """Title and basis of a quantity; a figure's basis begins at the first number of its name."""
    title, basis = TITLES.get(name, name), ""
    if found := re.fullmatch(r"(.+?), (\d.*)", name):
        title, basis = found[1], found[2]
    elif name not in TITLES:
        title = " ".join(WORDS.get(word, word) for word in name.split("_"))
    return title[:1].upper() + title[1:], basis


def _label(name: str, group: str, *, alone: bool) -> str:
    """The name of a line in its chart; alone: without lines beside it but of validation."""
    if name.startswith(VALIDATION):
        return "validation"
    rest = name.removeprefix(group).removeprefix("_")
    if ", " in name:
        return "measured"
    if alone or (rest == name and not name.startswith(group)):
        return "logged"
    if rest:
        return "GPU" if rest == "cuda" else rest.replace("_", " ")
    return "process" if group == "memory" else "model"
