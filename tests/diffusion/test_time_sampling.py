"""The noise levels of training, against the densities that papers state."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import beta, norm

from undust.diffusion.process import DISCRETE, PROCESSES
from undust.diffusion.registry import build
from undust.diffusion.time_sampling import TIME_SAMPLINGS, lognormal
from undust.errors import UndustError

EVEN = (torch.arange(199, dtype=torch.float64) + 1) / 200
FLOW = PROCESSES["flow"]()


def shares(text: str, uniform: torch.Tensor = EVEN) -> torch.Tensor:
    """Shares of the flow's time."""
    first, last = FLOW.time_range
    return (FLOW.time(build(TIME_SAMPLINGS, text, FLOW)(uniform)) - first) / (last - first)


def below_mode(t: float, scale: float) -> float:
    """The integral of 1/|f'| of Esser et al. 2024, eq. 20, over f(u) < t, by bisection of f."""
    low, high = 0.0, 1.0
    for _ in range(60):
        u = (low + high) / 2
        f = 1 - u - scale * (math.cos(math.pi / 2 * u) ** 2 - 1 + u)
        low, high = (u, high) if f > t else (low, u)
    return 1 - low  # f falls


# The probability of a share below t, from each published density.
BELOW = {
    "uniform": lambda t: t,
    "shifted:shift=3": lambda t: t / (3 - 2 * t),
    "logit-normal": lambda t: norm.cdf(math.log(t / (1 - t))),
    "logit-normal:mean=0.8,deviation=0.8": lambda t: norm.cdf(math.log(t / (1 - t)), 0.8, 0.8),
    "mode": lambda t: below_mode(t, 1.29),
    "mode:scale=-0.9": lambda t: below_mode(t, -0.9),
    "cosmap": lambda t: quad(lambda s: 2 / (math.pi - 2 * math.pi * s * (1 - s)), 0, t)[0],
    "beta:alpha=0.5,beta=3": lambda t: beta.cdf(t, 0.5, 3),
    "beta": lambda t: beta.cdf(t, 2, 2),
}


@pytest.mark.parametrize("text", BELOW)
def test_even_numbers_become_the_published_density(text: str):
    drawn = shares(text)
    assert (drawn.diff() > 0).all()
    probability = torch.tensor([BELOW[text](t) for t in drawn.tolist()], dtype=torch.float64)
    torch.testing.assert_close(probability, EVEN, rtol=0, atol=1e-8)


@pytest.mark.parametrize("text", BELOW)
def test_a_discrete_process_draws_whole_steps_as_often(text: str):
    """The share of each of ten steps is the density's integral over a tenth."""
    process = DISCRETE["scaled-linear"](10)
    even = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = build(TIME_SAMPLINGS, text, process)(even)
    steps = torch.searchsorted(process.sigmas, drawn)
    assert torch.equal(process.sigmas[steps], drawn)
    ends = [0.0, *(BELOW[text](k / 10) for k in range(1, 10)), 1.0]
    expected = torch.tensor(ends, dtype=torch.float64).diff()
    counted = steps.bincount(minlength=10) / 20_000
    torch.testing.assert_close(counted.double(), expected, rtol=0, atol=2e-4)


def test_lognormal_is_a_normal_log_sigma_and_logit_normal_in_rectified_flow():
    """log σ of Karras et al. 2022, and τ of Esser et al. 2024 with the unit normal."""
    expected = torch.from_numpy(norm.ppf(EVEN.numpy(), -1.2, 1.2))
    torch.testing.assert_close(lognormal(EVEN).log(), expected)
    own = build(TIME_SAMPLINGS, "lognormal:mean=0.3,deviation=0.7", PROCESSES["edm"]())(EVEN)
    torch.testing.assert_close(own.log(), torch.from_numpy(norm.ppf(EVEN.numpy(), 0.3, 0.7)))
    same = build(TIME_SAMPLINGS, "lognormal:mean=0.3,deviation=0.7", FLOW)(EVEN)
    below = shares("logit-normal:mean=0.3,deviation=0.7")
    first, last = FLOW.time_range
    torch.testing.assert_close(
        same / (1 + same), (FLOW.std(first + (last - first) * below)), rtol=0, atol=1e-3
    )


def test_lognormal_of_a_discrete_process_is_at_the_nearest_step():
    process = DISCRETE["linear"]()
    drawn = build(TIME_SAMPLINGS, "lognormal:mean=0,deviation=3", process)(EVEN)
    wanted = lognormal(EVEN, 0, 3).clamp(process.sigma_min, process.sigma_max)
    gap = (drawn.log()[:, None] - process.sigmas.log()).abs().argmin(1)
    assert torch.equal(process.sigmas[gap], drawn)
    nearest = (wanted.log()[:, None] - process.sigmas.log()).abs().min(1).values
    torch.testing.assert_close((drawn.log() - wanted.log()).abs(), nearest, rtol=0, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", TIME_SAMPLINGS)
def test_extreme_numbers_are_levels_of_the_process(name: str, process: str):
    forward = PROCESSES[process]()
    extreme = torch.tensor([2.0**-33, 0.5, 1 - 2.0**-33], dtype=torch.float64)
    drawn = TIME_SAMPLINGS[name](forward)(extreme)
    assert drawn.isfinite().all()
    if name != "lognormal":
        assert (drawn >= forward.sigma_min * (1 - 1e-9)).all()
        assert (drawn <= forward.sigma_max * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mode:scale=2", "scale: 2 is not above -1 and at most 1.75"),
        ("logit-normal:deviation=0", "deviation: 0 is not above 0"),
        ("beta:alpha=9", "at most 5"),
        ("logitnormal", "did you mean 'logit-normal'"),
    ],
)
def test_settings_that_are_no_density_are_named(text: str, said: str):
    with pytest.raises(UndustError, match=said):
        build(TIME_SAMPLINGS, text, FLOW)
