from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from undust.report import charts
from undust.report.log_table import Column

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300).map(np.asarray)


def column(values: object, every: int = 1) -> Column:
    found = np.asarray(values, float)
    return Column(np.arange(1, len(found) + 1) * float(every), found)


@given(NUMBERS, st.integers(10, 100))
def test_thinning_keeps_the_ends_and_the_extremes(values: np.ndarray, most: int):
    kept = charts.thinned(values, most)
    assert len(kept) <= most
    assert (np.diff(kept) > 0).all()
    assert {kept[0], kept[-1]} == {0, len(values) - 1}
    assert values[kept].min() == values.min()
    assert values[kept].max() == values.max()


@given(NUMBERS)
def test_smoothing_is_a_weighted_mean_of_the_values_so_far(values: np.ndarray):
    decay = 1 - 1 / max(2, charts.WINDOW * len(values))
    for place, smooth in enumerate(charts.smoothed(values)):
        weights = decay ** np.arange(place, -1, -1.0)
        mean = np.average(values[: place + 1], weights=weights)
        np.testing.assert_allclose(smooth, mean, rtol=1e-9, atol=1e-6)


def test_a_quantity_is_beside_its_validation_and_those_of_other_modules():
    figure = "Fréchet distance, network, 256 pictures against 99 pictures, 64x64, seed 0"
    names = (
        "validation_pixel",
        "seconds",
        "loss",
        "pixel",
        "gradient_norm",
        "gradient_norm_discriminator",
        "time",
    )
    columns = {name: column(np.linspace(1, 2, 50)) for name in names}
    columns |= {"validation_loss": column([3, 2], 25), "validation_pixel": column([1], 50)}
    columns[figure] = column([60, 50], 25)
    found = {chart.title: chart for chart in charts.charts(columns)}
    assert [*found] == [
        *("Loss", "Pixel", "Fréchet distance, network", "Gradient norm", "Seconds per step")
    ]
    assert found["Fréchet distance, network"].basis.startswith("256 pictures against")
    assert [each.name for each in found["Loss"].series] == ["logged", "smoothed", "validation"]
    assert [each.name for each in found["Gradient norm"].series if each.role == "raw"] == [
        *("model", "discriminator")
    ]
    assert [(each.name, each.colour) for each in found["Pixel"].series][::2] == [
        *(("logged", 0), ("validation", 1))
    ]
    validation = found["Loss"].series[-1]
    assert [value for value in validation.values if value is not None] == [3, 2]
    assert validation.last == 2


def test_a_logarithmic_axis_is_for_positive_values_of_a_wide_range():
    (wide,), (narrow,), (negative,) = (
        charts.charts({"x": column(values)}) for values in ([1, 40], [1, 2], [-1, 40])
    )
    assert wide.logarithmic and wide.positive
    assert narrow.positive and not narrow.logarithmic
    assert not negative.positive
    (_, line, _), *_ = wide.paths
    assert line == "M0 200L1000 0"
