"""Effects: paired differences, their interval, and when a claim counts as shown."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undust.explain.effect import Effect, t_quantile

NUMBERS = st.floats(-1e3, 1e3)
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=20)


def made(pairs: list[tuple[float, float]], claim: str | None) -> Effect:
    values, reference = zip(*pairs, strict=True)
    return Effect("name", "text", values, reference, claim)  # type: ignore[arg-type]


@given(PAIRS)
def test_the_difference_is_that_of_pairs(pairs: list[tuple[float, float]]):
    mean, half = made(pairs, None).difference
    apart = [a - b for a, b in pairs]
    assert math.isclose(mean, statistics.fmean(apart), abs_tol=1e-9)
    expected = t_quantile(0.95, len(apart) - 1) * statistics.stdev(apart) / len(apart) ** 0.5
    assert math.isclose(half, expected, abs_tol=1e-9)


@given(PAIRS)
def test_verdicts_are_symmetric(pairs: list[tuple[float, float]]):
    higher, lower = (made(pairs, claim) for claim in ("higher", "lower"))
    mean, half = higher.difference
    assert (higher.verdict == "unclear") == (lower.verdict == "unclear")
    if abs(mean) > half:
        assert {higher.verdict, lower.verdict} == {"as claimed", "opposite"}
        assert (higher.verdict == "as claimed") == (mean > 0)
    assert made(pairs, None).verdict == "no claim"


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 30, 101])
def test_quantiles_of_students_t(degrees: int):
    """Against the integral of the density, by Simpson's rule."""
    half = t_quantile(0.95, degrees)
    log = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    factor = math.exp(log) / math.sqrt(degrees * math.pi)

    def density(t: float) -> float:
        return factor * (1 + t * t / degrees) ** (-(degrees + 1) / 2)

    steps, width = 2000, half / 2000
    inner = sum((4 if k % 2 else 2) * density(k * width) for k in range(1, steps))
    inside = 2 * (density(0) + inner + density(half)) * width / 3
    assert inside == pytest.approx(0.95, abs=1e-8)


def test_a_single_value_has_no_spread():
    with pytest.raises(AssertionError, match="several seeds"):
        made([(1.0, 2.0)], None)
