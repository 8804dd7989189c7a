"""What adaptive samplers promise: a bound on the error, whatever the pictures beside."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from undust.diffusion.noise import normal
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.samplers.adaptive import dormand_prince, dpm_solver_23
from undust.diffusion.samplers.euler import euler_step
from undust.errors import UndustError

TOP, BOTTOM = 2.0, 0.1
ENDS = torch.tensor([TOP, BOTTOM], dtype=torch.float64)
START = TOP * normal(1, (0, 0, 0), (8, 3)).double()
NAMES = [name for name, sampler in SAMPLERS.items() if sampler.adaptive]


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] of two points at −1 and 1 blurred by ½, in each number alone."""
    spread = 0.25 + sigma.reshape(-1, 1) ** 2
    return (0.25 * x + (spread - 0.25) * torch.tanh(x / spread)) / spread


def run(name: str, x: Tensor, sigmas: Tensor = ENDS, **options: Any) -> Tensor:
    *_, last = SAMPLERS[name](denoise, x, sigmas, torch.zeros_like, **options)
    return last.x


@pytest.fixture(scope="module")
def end() -> Tensor:
    """By another implementation of another method: scipy's Runge-Kutta of order 8."""

    def slope(level: float, x: Any) -> Any:
        sigma = torch.tensor(level, dtype=torch.float64)
        place = torch.from_numpy(x)[:, None]
        return ((place - denoise(place, sigma.expand(len(place)))) / sigma)[:, 0].numpy()

    begin = START.flatten().numpy()
    found = solve_ivp(slope, (TOP, BOTTOM), begin, method="DOP853", rtol=1e-13, atol=1e-13)
    return torch.from_numpy(found.y[:, -1]).reshape(START.shape)


@pytest.mark.parametrize(
    ("pair", "order", "counts"),
    [(dpm_solver_23, 3, (40, 80, 160)), (dormand_prince, 5, (40, 80, 160))],
)
def test_the_two_orders_of_a_pair(pair: Any, order: int, counts: tuple[int, ...], end: Tensor):
    """In equal steps: the one that is gone on with, and the lower one that it is judged by."""
    measured = []
    for count in counts:
        levels = TOP * (BOTTOM / TOP) ** torch.linspace(0, 1, count + 1, dtype=torch.float64)
        high = low = START
        for sigma, down in pairwise(levels):
            both = (sigma.expand(len(START)), down.expand(len(START)))
            ask = lambda x, s: denoise(x, s.expand(len(x)))  # noqa: E731
            _, estimate, _ = pair(ask, high, ask(high, sigma), *both)
            high = euler_step(high, estimate, *both)
            low, _, _ = pair(ask, low, ask(low, sigma), *both)
        measured.append([(x - end).abs().mean().log().item() for x in (high, low)])
    for place, expected in enumerate((order, order - 1)):
        errors = [row[place] for row in measured]
        slope = (errors[0] - errors[-1]) / math.log(counts[-1] / counts[0])
        assert slope == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("name", NAMES)
def test_the_error_keeps_to_the_bound(name: str, end: Tensor):
    """Errors of steps do not add up to more than a few times the bound, and fall as it does."""
    bounds = [1e-3, 1e-5, 1e-7]
    errors = [(run(name, START, rtol=b, atol=b) - end).abs().max().item() / b for b in bounds]
    assert max(errors) < 5


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_does_not_notice_those_beside_it(name: str):
    """Each has its own steps: k-diffusion's share them, and a picture depends on its batch."""
    mixed = START * torch.tensor([0.01, 3.0] * 4, dtype=torch.float64)[:, None]
    together = run(name, mixed)
    for k in range(len(mixed)):
        torch.testing.assert_close(run(name, mixed[k : k + 1])[0], together[k])


@pytest.mark.parametrize("name", NAMES)
def test_only_the_ends_of_the_list_count(name: str):
    between = torch.tensor([TOP, 1.0, 0.3, BOTTOM], dtype=torch.float64)
    assert torch.equal(run(name, START), run(name, START, between))
    to_zero = torch.tensor([TOP, BOTTOM, 0.0], dtype=torch.float64)
    last = run(name, START)
    assert torch.equal(run(name, START, to_zero), denoise(last, ENDS[1:].expand(len(last))))


@pytest.mark.parametrize("name", NAMES)
def test_a_bound_has_to_be_one(name: str):
    with pytest.raises(UndustError, match="rtol and atol: both have to be above 0"):
        run(name, START, rtol=0.0)
