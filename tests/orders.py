"""Orders of convergence, measured on a Gaussian and a mixture of Gaussians."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from undust.diffusion.analytic import Mixture, flow
from undust.diffusion.noise import normal
from undust.diffusion.samplers import SAMPLERS


def doubles(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


MIXTURE = Mixture(doubles(0.4, 0.6), doubles([-1.0, 0.3], [1.2, 0.0]), doubles(0.4, 0.6))
# From σ = 1 the first steps, which have no past, weigh as much as the others; from far out in the
# noise, where the answers hardly change, even Euler's would go unnoticed.
TOP, BOTTOM = 1.0, 0.1
DEVIATION = 0.5


def falling(top: float, bottom: float, steps: int) -> Tensor:
    return torch.linspace(top ** (1 / 7), bottom ** (1 / 7), steps + 1, dtype=torch.float64) ** 7


def fitted(errors: Callable[[int], float], counts: Sequence[int]) -> float:
    """The power of 1/steps with which the error falls."""
    x = -doubles(*counts).log()
    y = doubles(*(errors(count) for count in counts)).log()
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / (x * x).sum()).item()


@cache
def _ends() -> tuple[Tensor, Tensor]:
    start = TOP * normal(1, (0, 0, 0), (8, 2)).double()
    return start, flow(MIXTURE, start, TOP, BOTTOM, 400)


def flow_order(name: str, counts: Sequence[int] = (32, 64, 128), **options: Any) -> float:
    """Of a deterministic sampler, by where it ends."""
    start, end = _ends()

    def error(count: int) -> float:
        sigmas = falling(TOP, BOTTOM, count)
        *_, last = SAMPLERS[name](MIXTURE, start, sigmas, torch.zeros_like, **options)
        return (last.x - end).abs().mean().item()

    return fitted(error, counts)


def variance(name: str, sigmas: Tensor, **options: Any) -> float:
    """What a sampler ends with on a Gaussian of deviation DEVIATION and mean 0; no random numbers.

    All is linear there, so row k of the batch may carry the k-th draw alone: variances add up.
    """
    unit = torch.eye(len(sigmas) + 1, dtype=torch.float64)
    draws = iter(unit[1:])

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x * (DEVIATION**2 / (DEVIATION**2 + sigma**2))[:, None]

    start = unit[0][:, None] * (DEVIATION**2 + sigmas[0] ** 2).sqrt()
    steps = SAMPLERS[name](denoise, start, sigmas, lambda *_: next(draws)[:, None], **options)
    *_, last = steps
    return last.x.square().sum().item()


def weak_order(name: str, counts: Sequence[int] = (32, 64, 128), **options: Any) -> float:
    """Of a stochastic sampler, by the variance of a Gaussian."""

    def error(count: int) -> float:
        true = DEVIATION**2 + BOTTOM**2
        return abs(variance(name, falling(TOP, BOTTOM, count), **options) - true)

    return fitted(error, counts)
