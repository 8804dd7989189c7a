"""Every stochastic sampler's weak and strong order, without a single random number.

On a Gaussian all of a sampler is linear in its start and in its noise, so one run over a batch of
unit impulses, one picture for each, gives the distribution at the end exactly: its mean and its
variance, and the distance to the solution on the same Brownian path.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from orders import MIXTURE, fitted
from undust.diffusion.noise import BrownianPath, normal
from undust.diffusion.samplers import SAMPLERS

MEAN, DEVIATION, TOP, BOTTOM = 0.5, 0.5, 5.0, 0.1
# Solvers of the equation with noise; order 0 is that of samplers for distilled models.
WALK: list[tuple[str, dict[str, Any]]] = [
    (name, {}) for name, sampler in SAMPLERS.items() if sampler.stochastic and sampler.order > 0
]
FINEST = 1024
STRONG = [case for case in WALK if SAMPLERS[case[0]].strong is not None]


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    kept = DEVIATION**2 / (DEVIATION**2 + sigma[:, None] ** 2)
    return MEAN + kept * (x - MEAN)


def even(steps: int) -> Tensor:
    return TOP * (BOTTOM / TOP) ** torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def clock(sigma: Tensor) -> Tensor:
    return sigma**-2


def impulses(
    name: str, sigmas: Tensor, places: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The end as base + own·start + Σ share·z, with z the unit increments between the places.

    places: falling σ between which the noise is cut up, so that two draws over common ground have
    as much in common as on a Brownian path; None: all draws are independent.
    """
    draws = 4 * len(sigmas) if places is None else len(places) - 1
    x = torch.zeros(draws + 2, 1, dtype=torch.float64)
    x[1] = 1
    count = iter(range(draws))

    def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        drawn = torch.zeros_like(x)
        if places is None:
            drawn[2 + next(count)] = 1
            return drawn
        inside = (places[:-1] <= sigma * (1 + 1e-9)) & (places[1:] >= sigma_next * (1 - 1e-9))
        widths = clock(places).diff() * inside
        assert widths.sum().item() == pytest.approx((clock(sigma_next) - clock(sigma)).item())
        drawn[2:, 0] = (widths / widths.sum()).sqrt()
        return drawn

    *_, last = SAMPLERS[name](denoise, x, sigmas, noise, **options)
    end = last.x[:, 0]
    return end[0], end[1] - end[0], end[2:] - end[0]


def weak_error(name: str, steps: int, path: bool, **options: Any) -> float:
    """How far mean and variance are off at the end."""
    sigmas = even(steps)
    base, own, shares = impulses(name, sigmas, even(2 * steps) if path else None, **options)
    start = DEVIATION**2 + TOP**2
    mean = base + own * MEAN - MEAN
    variance = own**2 * start + shares.square().sum() - DEVIATION**2 - BOTTOM**2
    return (mean.abs() + variance.abs()).item()


def solution(places: Tensor) -> tuple[Tensor, Tensor]:
    """The exact one's own and shares: (x − mean)/(s² + σ²) gains σ²/(s² + σ²) dW, dW² = d(1/σ²)."""
    spread = DEVIATION**2 + places**2
    between = (places[1:] * places[:-1]).sqrt()
    gain = between**2 / (DEVIATION**2 + between**2) * clock(places).diff().sqrt()
    return spread[-1] / spread[0], spread[-1] * gain


def strong_error(name: str, steps: int, **options: Any) -> float:
    """The root mean square distance at the end to the solution on the same path."""
    places = even(FINEST)
    _, own, shares = impulses(name, even(steps), places, **options)
    exact_own, exact_shares = solution(places)
    start = DEVIATION**2 + TOP**2
    return ((own - exact_own) ** 2 * start + (shares - exact_shares).square().sum()).sqrt().item()


@pytest.mark.parametrize(("name", "options"), WALK)
def test_weak_order(name: str, options: dict[str, Any]):
    """The distribution's. Not below 100 steps, where edm's churn is at its ceiling."""
    path = SAMPLERS[name].path
    order = fitted(lambda steps: weak_error(name, steps, path, **options), [100, 200, 400])
    assert order == pytest.approx(SAMPLERS[name].order, abs=0.15)


@pytest.mark.parametrize(("name", "options"), STRONG)
def test_strong_order(name: str, options: dict[str, Any]):
    order = fitted(lambda steps: strong_error(name, steps, **options), [16, 32, 64, 128, 256])
    assert order == pytest.approx(SAMPLERS[name].strong, abs=0.15)


def test_dpmpp_sde_needs_one_path():
    """Its two draws over common ground, made independently, cost it an order."""
    order = fitted(lambda steps: weak_error("dpmpp-sde", steps, path=False), [100, 200, 400])
    assert order == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", [name for name, _ in STRONG if SAMPLERS[name].path])
def test_on_a_mixture_the_same_path_is_followed_ever_closer(name: str):
    """With random paths, as a picture is painted: 16 … 256 steps against 1024 of the same."""

    def end(steps: int) -> Tensor:
        path = BrownianPath([11], (500, 2))
        noise = lambda *step: path(*step)[0]  # noqa: E731
        *_, last = SAMPLERS[name](MIXTURE, begin, even(steps), noise)
        return last.x

    begin = TOP * normal(12, (0, 0, 0), (500, 2)).double()
    finest = end(1024)
    order = fitted(lambda n: (end(n) - finest).square().mean().sqrt().item(), [16, 32, 64, 128])
    assert order == pytest.approx(SAMPLERS[name].strong, abs=0.2)
