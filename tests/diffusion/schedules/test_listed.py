"""Schedules that are lists of σ."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from undust.diffusion.process import PROCESSES
from undust.diffusion.schedules import SCHEDULES, listed, sigmas
from undust.errors import UndustError

PROCESS = PROCESSES["scaled-linear"]()


@given(st.sets(st.floats(1e-3, 14.0), min_size=1, max_size=50))
def test_what_is_listed_is_visited(levels: set[float]):
    falling = sorted(levels, reverse=True)
    for end in ([], [0.0]):
        found = listed(",".join(map(repr, [*falling, *end])))
        assert found is not None
        assert found.tolist() == [*falling, 0.0]
        assert torch.equal(sigmas(", ".join(map(repr, falling)), PROCESS, len(falling)), found)


@given(st.text(st.sampled_from("0123456789.,-+einfax "), max_size=20))
def test_any_text_is_a_name_a_list_or_an_error(text: str):
    try:
        found = listed(text)
    except UndustError:
        return
    if found is None:
        assert not text[:1].isdigit()
    else:
        assert bool((found.diff() < 0).all() and found.isfinite().all() and found[-1] == 0)


def test_a_name_is_its_schedule():
    assert listed("karras") is None
    assert torch.equal(sigmas("karras", PROCESS, 7), SCHEDULES["karras"](PROCESS, 7))


@pytest.mark.parametrize(
    ("schedule", "steps", "message"),
    [
        ("9,3,3", 3, "have to fall"),
        ("9,3,4", 3, "have to fall"),
        ("9,0,0", 3, "have to fall"),
        ("0", 1, "have to fall"),
        ("9,-1", 2, "have to fall"),
        ("9,nan", 2, "have to fall"),
        ("1e999,1", 2, "have to fall"),
        ("9,three", 2, "'three'; σ are listed as in"),
        ("9,3", 3, "2 σ are listed, for 3 steps"),
        ("15,3", 2, "σ = 15 is above the process's largest, 14.61"),
        ("karas", 2, "did you mean 'karras'"),
    ],
)
def test_lists_that_cannot_be(schedule: str, steps: int, message: str):
    with pytest.raises(UndustError, match=message):
        sigmas(schedule, PROCESS, steps)
