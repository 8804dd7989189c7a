"""Heun's method: look where Euler's step leads, then go the mean of both slopes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from undust.diffusion.samplers.euler import toward
from undust.diffusion.samplers.registry import Denoise, Noise, Step, sampler


@sampler("heun", order=2)
def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Heun's method, two network calls a step (Karras et al. 2022, algorithm 1)."""
    del noise
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if sigma_next > 0:  # at 0 there is no slope to look at: the last step is Euler's
            ahead = denoise(toward(x, x0, sigma, sigma_next), sigma_next)
            # The mean of the slopes (x − x0)/σ here and there, as the estimate it heads for: the
            # slopes themselves would lose digits of x where σ is large.
            x0 = x0 + sigma / (2 * sigma_next) * (ahead - x0)
        x = toward(x, x0, sigma, sigma_next)
        yield Step(index, sigma_next, x, x0)
