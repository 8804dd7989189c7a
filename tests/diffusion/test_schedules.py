from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from undust.diffusion.process import PROCESSES
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError

BUILT = {name: build() for name, build in PROCESSES.items()}
SHORT = PROCESSES["linear"](steps=7)
WHOLE = ("leading", "trailing", "linspace")  # those that visit whole time steps


@given(st.sampled_from([*SCHEDULES]), st.sampled_from([*BUILT]), st.integers(1, 1000))
def test_every_length_falls_strictly_to_zero(name: str, process: str, steps: int):
    sigmas = SCHEDULES[name](BUILT[process], steps)
    assert sigmas.dtype == torch.float64
    assert sigmas.shape == (steps + 1,)
    assert (sigmas.diff() < 0).all()
    assert sigmas[-1] == 0
    assert sigmas[0] <= BUILT[process].sigma_max * (1 + 1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_as_many_steps_as_were_trained(name: str):
    """diffusers#10003: `leading` used to run past the end of the table with all 1000 steps."""
    for steps in range(1, SHORT.steps + 1):
        assert (SCHEDULES[name](SHORT, steps).diff() < 0).all()
    if name in WHOLE:
        assert torch.equal(SCHEDULES[name](SHORT, 7)[:-1], SHORT.sigmas.flip(0))


# Lin et al. 2024, table 2, shifted from its time steps 1 … 1000 to 0 … 999; `leading` as in
# diffusers with steps_offset 1, which is Stable Diffusion's.
TABLE = {
    ("leading", 10): [901, 801, 701, 601, 501, 401, 301, 201, 101, 1],
    ("trailing", 10): [999, 899, 799, 699, 599, 499, 399, 299, 199, 99],
    ("linspace", 10): [999, 888, 777, 666, 555, 444, 333, 222, 111, 0],
    ("leading", 3): [667, 334, 1],
    ("trailing", 3): [999, 666, 332],
    ("linspace", 2): [999, 0],
    ("trailing", 1): [999],
    ("linspace", 1): [999],
}


@pytest.mark.parametrize(("name", "steps"), TABLE)
def test_spacings_visit_the_published_time_steps(name: str, steps: int):
    process = BUILT["scaled-linear"]
    sigmas = SCHEDULES[name](process, steps)
    assert process.timestep(sigmas[:-1]).tolist() == TABLE[name, steps]


def test_karras_is_the_published_formula():
    """Karras et al. 2022, eq. 5 with ρ = 7, written out."""
    low, high, n = BUILT["linear"].sigma_min, BUILT["linear"].sigma_max, 12
    expected = [
        (high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(n)
    ]
    assert SCHEDULES["karras"](BUILT["linear"], n).tolist() == pytest.approx([*expected, 0])


def test_exponential_has_one_ratio():
    sigmas = SCHEDULES["exponential"](BUILT["linear"], 12)[:-1]
    ratio = sigmas[1:] / sigmas[:-1]
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))
    assert sigmas[0].item() == pytest.approx(BUILT["linear"].sigma_max)
    assert sigmas[-1].item() == pytest.approx(BUILT["linear"].sigma_min)


@pytest.mark.parametrize("name", SCHEDULES)
def test_numbers_of_steps_that_cannot_be(name: str):
    for steps in (0, -3):
        with pytest.raises(UndustError, match=f"steps: {steps} is too few"):
            SCHEDULES[name](SHORT, steps)
    if name in WHOLE:
        with pytest.raises(UndustError, match="steps: 8 is more than the 7"):
            SCHEDULES[name](SHORT, 8)
    else:
        assert len(SCHEDULES[name](SHORT, 8)) == 9


def test_unknown_schedule():
    with pytest.raises(UndustError, match="unknown schedule 'karas'; did you mean 'karras'"):
        SCHEDULES["karas"]
