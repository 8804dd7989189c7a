"""Extended reverse-time SDEs, with a choice of the amount of fresh noise.

With a noise scale φ(σ) the linear part of the equation scales x by φ(σ_next)/φ(σ) instead of
σ_next/σ, and fresh noise is added up to σ_next; φ(σ) = σ is the probability flow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from undust.diffusion.registry import Registry
from undust.diffusion.samplers.adams import in_range, uneven
from undust.diffusion.samplers.euler import euler_step
from undust.diffusion.samplers.registry import Denoise, Noise, SamplerStep, sampler

Scale = Callable[[Tensor], Tensor]

SCALES: Registry[Scale] = Registry("scale")
SCALES["ode"] = lambda sigma: sigma
SCALES["sde"] = torch.square
SCALES["er-sde"] = lambda sigma: sigma * ((sigma**0.3).exp() + 10)


@cache
def _gauss(count: int = 16) -> tuple[Tensor, Tensor]:
    """Nodes in (0, 1) and weights of Gauss quadrature (Golub & Welsch 1969)."""
    k = torch.arange(1, count, dtype=torch.float64)
    off_diagonal = k / (4 * k**2 - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(off_diagonal.diag(1) + off_diagonal.diag(-1))
    return (1 + nodes) / 2, vectors[0] ** 2


def reach(scale: Scale, sigma: Tensor, sigma_next: Tensor) -> tuple[float, float]:
    """The coefficients in x of the first and the second derivative of x0 by σ (Cui et al. 2023).

    For x0 = (s − σ)^k/k! it is φ(σ_next)·∫ x0 d(1/φ) over the step, here integrated by parts.
    """
    width = sigma_next - sigma
    places, weights = _gauss()
    levels = sigma_next * (sigma / sigma_next) ** places  # even in log σ, where φ is smooth
    share = weights * (sigma / sigma_next).log() * levels * scale(sigma_next) / scale(levels)
    first = width + share.sum()
    second = width**2 / 2 + (share * (levels - sigma)).sum()
    return first.item(), second.item()


@sampler("er-sde", order=2, stochastic=True, strong=1.0, path=True)
def er_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    order: int = 3,
    scale: str = "er-sde",
) -> Iterator[SamplerStep]:
    """ER-SDE-Solver 1, 2 or 3: x0 as a Taylor series in σ (Cui et al. 2023).

    The equation adds noise in the time (σ/φ)², a Brownian path is in 1/σ²: its increments are taken
    at the levels φ/σ, so that steps of any length add up to one path. With the scale "er-sde" these
    are so close that from about 500 steps on they exceed the path's resolution.
    """
    in_range("order", order, 1, 3)
    phi = SCALES[scale]
    estimates: list[Tensor] = []
    slopes: list[Tensor] = []
    levels, since = (-sigmas.log()).tolist(), 0  # the first step whose estimate still counts
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        estimate = x0 = denoise(x, sigma)
        estimates = [x0, *estimates][:2]
        fresh = 0.0
        down = sigma * phi(sigma_next) / phi(sigma)
        for before in range(max(since, index - 2), index):
            if uneven(levels[before + 1], levels[before], levels[index + 1] - levels[index]):
                since = before + 1
        if sigma_next > 0:
            first, second = reach(phi, sigma, sigma_next)
            kept = 1 - down / sigma
            if order > 1 and index > since:
                slopes = [(x0 - estimates[1]) / (sigma - sigmas[index - 1]), *slopes][:2]
                estimate = estimate + first / kept * slopes[0]
            if order > 2 and index > since + 1:
                curve = 2 * (slopes[0] - slopes[1]) / (sigma - sigmas[index - 2])
                estimate = estimate + second / kept * curve
            if scale != "ode":
                gathered = noise(phi(sigma) / sigma, phi(sigma_next) / sigma_next)
                fresh = (sigma_next**2 - down**2).sqrt() * gathered
        x = euler_step(x, estimate, sigma, down) + fresh
        yield SamplerStep(index, sigma_next, x, estimate)
