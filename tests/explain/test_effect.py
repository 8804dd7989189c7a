"""Effects: paired differences, their standard error, and when a claim counts as shown."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undust.explain.effect import ERRORS, Effect

NUMBERS = st.floats(-1e3, 1e3)
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=20)


def made(pairs: list[tuple[float, float]], claim: str | None) -> Effect:
    values, reference = zip(*pairs, strict=True)
    return Effect("name", "text", values, reference, claim)  # type: ignore[arg-type]


@given(PAIRS)
def test_the_difference_is_that_of_pairs(pairs: list[tuple[float, float]]):
    mean, error = made(pairs, None).difference
    apart = [a - b for a, b in pairs]
    assert math.isclose(mean, statistics.fmean(apart), abs_tol=1e-9)
    assert math.isclose(error, statistics.stdev(apart) / len(apart) ** 0.5, abs_tol=1e-9)


@given(PAIRS)
def test_verdicts_are_symmetric(pairs: list[tuple[float, float]]):
    higher, lower = (made(pairs, claim) for claim in ("higher", "lower"))
    mean, error = higher.difference
    assert (higher.verdict == "unclear") == (lower.verdict == "unclear")
    if abs(mean) > ERRORS * error:
        assert {higher.verdict, lower.verdict} == {"as claimed", "opposite"}
        assert (higher.verdict == "as claimed") == (mean > 0)
    assert made(pairs, None).verdict == "no claim"


def test_a_single_value_has_no_spread():
    with pytest.raises(AssertionError, match="several seeds"):
        made([(1.0, 2.0)], None)
