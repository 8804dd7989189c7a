"""Line charts: their geometry, and as a drawing; a page has the same geometry as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from undust.explain.figures import Line, LineChart
from undust.explain.labels import draw_label, drawn_width

WIDTH, HEIGHT = 420.0, 280.0  # of the whole, in the unit of all places
LEFT, RIGHT, TOP, BOTTOM = 54.0, 12.0, 28.0, 42.0  # margins around the axes
MARGIN = 0.04  # share of the range left free at both ends
TICKS = 5  # about
HEAD = 7.0  # length of an arrow's head
SIZE = 13  # of letters
COLOURS = (  # as web/base.css
    *("#1a5fb4", "#b5500b", "#17713f", "#8a2c92"),
    *("#7a6200", "#0b6b78", "#5b5f6b", "#b3155a"),
)

Place = tuple[float, float]


@dataclass(frozen=True)
class DrawnLine:
    """A line as places, with its colour's number; band: a polygon of its spread, or ()."""

    name: str
    colour: int
    places: Sequence[Place]
    band: Sequence[Place]
    head: Sequence[Place]
    markers: bool


@dataclass(frozen=True)
class DrawnChart:
    """A chart with all places computed. Ticks: the place along the axis, and its label."""

    chart: LineChart
    lines: Sequence[DrawnLine]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    names: Sequence[tuple[int, str]]

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the axes."""
        return LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM


def drawn(chart: LineChart) -> DrawnChart:
    """The geometry of a chart. Values that a logarithmic axis cannot have are left out."""
    lines = [line for line in (_kept(chart, line) for line in chart.lines) if line.x]
    x_axis = _Axis([x for line in lines for x in line.x], log=chart.log_x)
    y_axis = _Axis([*_all_y(lines, log=chart.log_y)], log=chart.log_y)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    if chart.square:
        x_axis.widen(width / height * y_axis.span)
        y_axis.widen(height / width * x_axis.span)

    def place(x: float, y: float) -> Place:
        across, up = x_axis.share(x), y_axis.share(y)
        return round(LEFT + across * width, 1), round(TOP + (1 - up) * height, 1)

    found: list[DrawnLine] = []
    for line in lines:
        places = [place(x, y) for x, y in zip(line.x, line.y, strict=True)]
        band: list[Place] = []
        if line.spread is not None:
            ends = [
                [
                    place(x, y_axis.clipped(y + side * spread))
                    for x, y, spread in zip(line.x, line.y, line.spread, strict=True)
                ]
                for side in (1, -1)
            ]
            band = [*ends[0], *ends[1][::-1]]
        colour = chart.names.index(line.name) % len(COLOURS)
        head = _head(places) if line.arrow else []
        found.append(DrawnLine(line.name, colour, places, band, head, line.markers))
    return DrawnChart(
        chart,
        found,
        [(round(LEFT + x_axis.share(tick) * width, 1), label) for tick, label in x_axis.ticks()],
        [
            (round(TOP + (1 - y_axis.share(tick)) * height, 1), label)
            for tick, label in y_axis.ticks()
        ],
        [(number % len(COLOURS), name) for number, name in enumerate(chart.names) if name],
    )


def chart_image(chart: LineChart, scale: int = 2) -> Image.Image:
    """A chart with its legend as a picture on white, `scale` pixels for a unit of its geometry."""
    found, draw_at = drawn(chart), 2 * scale  # drawn larger and reduced, for smooth lines
    names, legend = _legend(found)
    height = HEIGHT + legend
    image = Image.new("RGB", (round(WIDTH * draw_at), round(height * draw_at)), "white")
    canvas = ImageDraw.Draw(image, "RGBA")

    def scaled(places: Sequence[Place]) -> list[Place]:
        return [(x * draw_at, y * draw_at) for x, y in places]

    left, top, right, bottom = found.frame
    for x, _ in found.x_ticks:
        canvas.line(scaled([(x, top), (x, bottom)]), "#e3e5e8", draw_at)
    for y, _ in found.y_ticks:
        canvas.line(scaled([(left, y), (right, y)]), "#e3e5e8", draw_at)
    for line in found.lines:
        if line.band:
            canvas.polygon(scaled(line.band), COLOURS[line.colour] + "30")
    for line in found.lines:
        colour = COLOURS[line.colour]
        canvas.line(scaled(line.places), colour, round(1.8 * draw_at), "curve")
        if line.head:
            canvas.polygon(scaled(line.head), colour)
        for x, y in scaled(line.places) if line.markers else ():
            radius = 2.5 * draw_at
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
    for x, y, colour, _ in names:
        canvas.rectangle([*scaled([(x, y - 2)])[0], *scaled([(x + 14, y + 1)])[0]], COLOURS[colour])
    image = image.resize((round(WIDTH * scale), round(height * scale)), Image.Resampling.LANCZOS)
    size = SIZE * scale
    for x, label in found.x_ticks:
        draw_label(image, (x * scale, (bottom + 5) * scale), label, size, "mt")
    for y, label in found.y_ticks:
        draw_label(image, ((left - 5) * scale, y * scale), label, size, "rm")
    draw_label(image, ((left + right) / 2 * scale, (HEIGHT - 4) * scale), chart.x, size, "mb")
    draw_label(image, (8 * scale, 4 * scale), chart.y, size, "lt")
    for x, y, _, name in names:
        draw_label(image, ((x + 20) * scale, y * scale), name, size, "lm")
    return image


def _legend(found: DrawnChart) -> tuple[list[tuple[float, float, int, str]], float]:
    """The place, colour and text of each name below the axes, and the height of all."""
    row, x = 0, LEFT
    places: list[tuple[float, float, int, str]] = []
    for colour, name in found.names:
        needed = 34 + drawn_width(name, SIZE)
        if x + needed > WIDTH and x > LEFT:
            row, x = row + 1, LEFT
        places.append((x, HEIGHT + 10 + 20 * row, colour, name))
        x += needed
    return places, 20.0 * (row + 1) + 4 if places else 0.0


class _Axis:
    """Values to shares of an axis' length."""

    def __init__(self, values: Sequence[float], *, log: bool) -> None:
        self.log = log
        low, high = min(values), max(values)
        if log:
            low, high = math.log10(low), math.log10(high)
        spare = (high - low) * MARGIN or abs(low) * MARGIN or 0.5
        self.low, self.high = low - spare, high + spare

    @property
    def span(self) -> float:
        return self.high - self.low

    def widen(self, span: float) -> None:
        """Makes the span at least this, around its middle."""
        more = (span - self.span) / 2
        if more > 0:
            self.low, self.high = self.low - more, self.high + more

    def share(self, value: float) -> float:
        return ((math.log10(value) if self.log else value) - self.low) / self.span

    def clipped(self, value: float) -> float:
        """A value within the axis."""
        low, high = (10**end if self.log else end for end in (self.low, self.high))
        return min(max(value, low), high)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Round values within the axis, with labels."""
        if self.log:
            whole = range(math.ceil(self.low), math.floor(self.high) + 1)
            if self.span > TICKS + 1:
                every = math.ceil(self.span / TICKS)
                values = [10.0**power for power in whole if power % every == 0]
            else:
                marks = (1,) if self.span > 3 else (1, 3) if self.span > 1.2 else (1, 2, 5)
                powers = range(math.floor(self.low), math.ceil(self.high) + 1)
                values = [mark * 10.0**power for power in powers for mark in marks]
                values = [v for v in values if self.low <= math.log10(v) <= self.high]
        else:
            raw = self.span / TICKS
            power = 10.0 ** math.floor(math.log10(raw))
            step = next(mark * power for mark in (1, 2, 5, 10) if mark * power >= raw)
            first = math.ceil(self.low / step)
            values = [step * k for k in range(first, math.floor(self.high / step) + 1)]
        yield from ((value, short(value)) for value in values)


def short(value: float) -> str:
    """A number in at most four significant digits, such as 0.05, 12000 or 1e-05."""
    text = f"{value:.4g}"
    if "e+" in text and abs(value) < 1e6:
        return f"{value:.0f}"
    return text.replace("e+0", "e").replace("e-0", "e-")


def _kept(chart: LineChart, line: Line) -> Line:
    """The line at finite values, which on logarithmic axes are above 0."""
    spreads = line.spread or [0.0] * len(line.x)
    points = [
        (x, y, spread)
        for x, y, spread in zip(line.x, line.y, spreads, strict=True)
        if math.isfinite(x)
        and math.isfinite(y)
        and (x > 0 or not chart.log_x)
        and (y > 0 or not chart.log_y)
    ]
    x, y, spread = ([point[place] for point in points] for place in range(3))
    return replace(line, x=x, y=y, spread=spread if line.spread else None)


def _all_y(lines: Sequence[Line], *, log: bool) -> Iterator[float]:
    """All values with their spread, as far as the axis can have them."""
    for line in lines:
        yield from line.y
        for y, spread in zip(line.y, line.spread or (), strict=False):
            yield y + spread
            if y - spread > 0 or not log:
                yield y - spread


def _head(places: Sequence[Place]) -> list[Place]:
    """The triangle at the end of a line."""
    end = places[-1]
    before = next((place for place in places[-2::-1] if place != end), None)
    if before is None:
        return []
    along = math.atan2(end[1] - before[1], end[0] - before[0])
    sides = [
        (
            round(end[0] - HEAD * math.cos(along + turn), 1),
            round(end[1] - HEAD * math.sin(along + turn), 1),
        )
        for turn in (0.45, -0.45)
    ]
    return [end, *sides]
