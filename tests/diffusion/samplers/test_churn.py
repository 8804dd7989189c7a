"""Noise put on and taken off again keeps the distribution and forgets errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from convergence import falling
from orders import doubles
from undust.diffusion.noise import normal
from undust.diffusion.samplers import SAMPLERS
from undust.errors import UndustError

SIGMAS = torch.cat([falling(10.0, 0.02, 40), doubles(0.0)])


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] of a unit Gaussian."""
    return x / (1 + sigma[:, None] ** 2)


def end(name: str, x: Tensor, sigmas: Tensor = SIGMAS, **options: Any) -> Tensor:
    draws = iter(range(1000))
    *_, last = SAMPLERS[name](
        denoise, x, sigmas, lambda *_: normal(2, (next(draws), 0, 0), x.shape), **options
    )
    return last.x


def test_without_noise_both_are_heun():
    x = 10 * normal(1, (0, 0, 0), (9, 1)).double()
    assert torch.equal(end("edm", x, s_churn=0.0), end("heun", x))
    assert torch.equal(end("restart", x, times=0), end("heun", x))
    few = doubles(10.0, 5.0, 1.0, 0.01, 0.0)  # one level in 0.1 … 2: nothing to walk again
    assert torch.equal(end("restart", x, few), end("heun", x, few))


@pytest.mark.parametrize(
    ("name", "options"), [("edm", {}), ("restart", {}), ("restart", {"times": 3})]
)
def test_errors_of_the_start_are_forgotten(name: str, options: dict[str, Any]):
    """A start that is off by its whole deviation: the flow keeps that, fresh noise does not.

    On a unit Gaussian a walk from σ₁ down to σ₀ scales a distance by √((1 + σ₀²)/(1 + σ₁²)), and
    restart makes it from 2 to 0.1 over and over again (Xu et al. 2023, theorem 1).
    """
    x = 10 * normal(1, (0, 0, 0), (4, 1)).double()
    moved = x + (1 + 10.0**2) ** 0.5
    apart = (end(name, moved, **options) - end(name, x, **options)).mean().item()
    flow = (end("heun", moved) - end("heun", x)).mean().item()
    assert flow == pytest.approx(1, rel=0.02)
    assert apart < 0.6
    if name == "restart":
        inside = SIGMAS[(SIGMAS >= 0.1) & (SIGMAS <= 2)]
        scale = ((1 + inside[-1] ** 2) / (1 + inside[0] ** 2)).sqrt().item()
        assert apart == pytest.approx(flow * scale ** options.get("times", 1), rel=0.02)


def test_restart_asks_for_noise_from_the_lowest_to_the_highest_level():
    asked: list[tuple[float, float]] = []

    def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        asked.append((sigma.item(), sigma_next.item()))
        return torch.zeros(1, 1)

    sigmas = doubles(9.0, 3.0, 2.0, 0.7, 0.1, 0.05, 0.0)
    list(SAMPLERS["restart"](denoise, torch.ones(1, 1), sigmas, noise, times=2))
    assert asked == [(0.1, 2.0)] * 2


def test_options_that_cannot_be():
    x = torch.ones(1, 1)
    with pytest.raises(UndustError, match=r"^s_churn and s_noise: "):
        end("edm", x, s_churn=-1.0)
    for options in ({"times": -1}, {"low": 0.0}, {"low": 2.0, "high": 1.0}):
        with pytest.raises(UndustError, match=r"^restart: "):
            end("restart", x, **options)
