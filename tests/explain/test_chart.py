"""Charts: where values lie on their axes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undust.explain.chart import HEIGHT, WIDTH, chart_image, drawn, short
from undust.explain.figures import Line, LineChart

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8)


def chart(x: list[float], y: list[float], **options: bool) -> LineChart:
    return LineChart("title", "x", "y", [Line("line", x, y)], **options)


@given(VALUES, st.booleans())
def test_every_value_lies_within_the_axes(y: list[float], square: bool):
    found = drawn(chart([float(k) for k in range(len(y))], y, square=square))
    left, top, right, bottom = found.frame
    for place, up in found.lines[0].places:
        assert left <= place <= right
        assert top <= up <= bottom
    assert all(left <= place <= right for place, _ in found.x_ticks)
    assert all(top <= place <= bottom for place, _ in found.y_ticks)


@given(st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=8, unique=True))
def test_a_logarithmic_axis_is_linear_in_the_logarithm(x: list[float]):
    found = drawn(chart(sorted(x), [0.0] * len(x), log_x=True))
    places = [place for place, _ in found.lines[0].places]
    logs = [math.log10(value) for value in sorted(x)]
    assert places == sorted(places)
    span = logs[-1] - logs[0]
    for place, log in zip(places, logs, strict=True):
        expected = places[0] + (places[-1] - places[0]) * (log - logs[0]) / span
        assert abs(place - expected) <= 0.15  # rounded to tenths


def test_ticks_are_where_their_labels_say():
    found = drawn(chart([0.0, 10.0], [1.0, 100.0], log_y=True))
    at = {label: place for place, label in found.y_ticks}
    places = found.lines[0].places
    assert at["1"] == pytest.approx(places[0][1], abs=0.11)
    assert at["100"] == pytest.approx(places[1][1], abs=0.11)
    assert {"0", "10"} <= {label for _, label in found.x_ticks}


def test_one_scale_for_both_axes():
    found = drawn(chart([0.0, 1.0], [0.0, 5.0], square=True))
    (x0, y0), (x1, y1) = found.lines[0].places
    assert abs(y0 - y1) == pytest.approx(5 * abs(x1 - x0), abs=0.6)


def test_values_that_an_axis_cannot_have_are_left_out():
    line = Line("line", [0.0, 1.0, 2.0, 3.0], [1.0, math.nan, 0.0, 4.0], [2.0, 0.0, 0.0, 1.0])
    found = drawn(LineChart("title", "x", "y", [line], log_y=True))
    assert len(found.lines[0].places) == 2
    assert all(up <= found.frame[3] for _, up in found.lines[0].band)


def test_lines_of_one_name_share_colour_and_legend():
    lines = [Line("a", [0], [0]), Line("b", [1], [1]), Line("a", [2], [2])]
    found = drawn(LineChart("title", "x", "y", lines))
    assert [line.colour for line in found.lines] == [0, 1, 0]
    assert found.names == [(0, "a"), (1, "b")]


def test_the_drawing_has_the_lines_where_the_geometry_has_them():
    found = chart([0.0, 1.0], [0.0, 1.0])
    image = chart_image(found, 2)
    assert image.width == 2 * WIDTH
    assert image.height > 2 * HEIGHT
    (x0, y0), (x1, y1) = drawn(found).lines[0].places
    red, _, blue = image.getpixel((round(x0 + x1), round(y0 + y1)))  # type: ignore[misc]
    assert blue > red + 50


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.05, "0.05"), (12000.0, "12000"), (1e-05, "1e-5"), (1e7, "1e7"), (-2.5, "-2.5")],
)
def test_short_numbers(value: float, text: str):
    assert short(value) == text
