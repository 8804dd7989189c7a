"""Gradient estimation: Euler's method with a slope corrected by the previous one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from undust.diffusion.samplers.euler import euler_step
from undust.diffusion.samplers.registry import Denoise, Noise, SamplerStep, sampler


@sampler("gradient-estimation", order=1)
def gradient_estimation(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, gamma: float = 2.0
) -> Iterator[SamplerStep]:
    """The noise γ·n − (γ−1)·n_before instead of n (Permenter & Yuan 2024, γ = 2).

    It improves an estimate of the distance to the data, not the order: γ = 1 is Euler's method,
    γ = 1.5 that of Adams and Bashforth for even σ, of order 2; the error of γ = 2 is that of
    Euler's with the opposite sign.
    """
    del noise
    before: Tensor | None = None
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slope = (x - x0) / sigma
        if before is not None and sigma_next > 0:
            x0 = x0 - sigma * (gamma - 1) * (slope - before)
        before = slope
        x = euler_step(x, x0, sigma, sigma_next)
        yield SamplerStep(index, sigma_next, x, x0)
