"""What is said of samplers in few steps: the variance that they end with on a Gaussian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from peers import k_diffusion_sampling
from undust.diffusion.process import PROCESSES
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES


def own(name: str) -> Callable[..., Tensor]:
    def end(denoise: Any, x: Tensor, sigmas: Tensor, noise: Any) -> Tensor:
        *_, last = SAMPLERS[name](denoise, x, sigmas, noise)
        return last.x

    return end


def peer(denoise: Any, x: Tensor, sigmas: Tensor, noise: Any) -> Tensor:
    sample = k_diffusion_sampling().sample_dpmpp_3m_sde
    return sample(denoise, x, sigmas, disable=True, noise_sampler=noise)


def ratio(end: Callable[..., Tensor], steps: int, deviation: float) -> float:
    """Variance of the ends over that of the data, exactly: all is linear in the start and draws.

    A batch of unit impulses, one for the start and one for each draw, gives the coefficients.
    """
    sigmas = SCHEDULES["karras"](PROCESSES["scaled-linear"](), steps)
    x = torch.zeros(4 * steps, 1, dtype=torch.float64)
    x[0] = 1
    draws = iter(torch.eye(len(x), dtype=torch.float64)[1:, :, None])

    def denoise(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        return x * deviation**2 / (deviation**2 + sigma.reshape(-1, 1) ** 2)

    shares = end(denoise, x, sigmas, lambda *_: next(draws)).square()
    found = shares[0] * (deviation**2 + sigmas[0] ** 2) + shares[1:].sum()
    return found.item() / deviation**2


@pytest.mark.parametrize(
    ("end", "least", "most"),
    [
        (own("dpmpp-3m-sde"), 3.0, 3.9),
        (peer, 2.4, 3.1),
        (own("sa-solver"), 5.3, 14.0),
        (own("dpmpp-2m-sde"), 0.9, 1.25),
        (own("er-sde"), 0.7, 0.85),
        (own("euler-ancestral"), 0.35, 0.45),
    ],
)
def test_variance_in_seven_steps(end: Callable[..., Tensor], least: float, most: float):
    found = [ratio(end, 7, deviation) for deviation in (0.3, 0.5, 1.0, 1.2)]
    assert min(found) == pytest.approx(least, abs=0.05)
    assert max(found) == pytest.approx(most, abs=0.05)


@pytest.mark.parametrize(
    ("name", "steps", "most"), [("dpmpp-3m-sde", 15, 1.25), ("sa-solver", 30, 1.1)]
)
def test_variance_in_more_steps(name: str, steps: int, most: float):
    for deviation in (0.3, 0.5, 1.0, 1.2):
        assert 0.95 < ratio(own(name), steps, deviation) < most
