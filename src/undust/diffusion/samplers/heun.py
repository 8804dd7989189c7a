"""Heun's method: the mean of the slopes at both ends of Euler's step."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from undust.diffusion.samplers.euler import deterministic_split, euler_step, one_step_solver
from undust.diffusion.samplers.registry import Denoise, Noise, SamplerStep, sampler


def both(denoise: Denoise, x: Tensor, x0: Tensor, sigma: Tensor, down: Tensor) -> Tensor:
    """The estimate that the mean of the slopes at x and after Euler's step points to.

    The slopes (x − x0)/σ themselves would lose digits of x0 at large σ.
    """
    ahead = denoise(euler_step(x, x0, sigma, down), down)
    return x0 + sigma / (2 * down) * (ahead - x0)


@sampler("heun", order=2, finite=True)
def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[SamplerStep]:
    """Heun's method, two network calls a step (Karras et al. 2022, algorithm 1)."""
    return one_step_solver(denoise, x, sigmas, noise, deterministic_split, both)
