"""Samplers for distilled models, which predict the end of the flow and not the mean picture.

For an exact consistency function f(x, σ), the end of the flow from x (Song et al. 2023), adding
noise of any level gives a sample of that level. With an ordinary denoiser, which predicts the mean,
the error does not fall with more steps, so the order is 0.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from undust.diffusion.samplers.euler import one_step_solver
from undust.diffusion.samplers.registry import Denoise, Noise, SamplerStep, sampler
from undust.errors import UndustError


@sampler("lcm", order=0, stochastic=True)
def lcm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[SamplerStep]:
    """Steps to x0 and back up with fresh noise, for LCM models (Luo et al. 2023, alg. 3)."""
    return one_step_solver(
        denoise, x, sigmas, noise, lambda _, sigma_next: (0 * sigma_next, sigma_next)
    )


@sampler("tcd", order=0, stochastic=True)
def tcd(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, gamma: float = 0.3
) -> Iterator[SamplerStep]:
    """Steps below the next level and back up with fresh noise, for TCD models (Zheng et al. 2024).

    Their algorithm 4. gamma: how far below, as a share of σ_next; 0 is Euler's method, 1 is lcm.
    Their γ counts time steps, which a list of σ does not have.
    """
    if not 0 <= gamma <= 1:
        raise UndustError(f"gamma: {gamma} is outside 0 (no fresh noise) … 1 (only fresh noise)")

    def split(_: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
        down = (1 - gamma) * sigma_next
        return down, (sigma_next**2 - down**2).sqrt()

    return one_step_solver(denoise, x, sigmas, noise, split)
