"""Samplers for distilled models, whose answer is the end of the flow and not the mean picture.

With the exact answer f(x, σ) = "where the flow from x ends" (Song et al. 2023), noise of any level
put on it is again a sample of that level. An ordinary denoiser answers with the mean of all
pictures that x may be: its errors do not fall with more steps, so these have the order 0.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from undust.diffusion.samplers.euler import one_step_solver
from undust.diffusion.samplers.registry import Denoise, Noise, SamplerStep, sampler
from undust.errors import UndustError


@sampler("lcm", order=0, stochastic=True)
def lcm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[SamplerStep]:
    """All the way to x0 and back up with fresh noise, for LCM models (Luo et al. 2023, alg. 3)."""
    return one_step_solver(
        denoise, x, sigmas, noise, lambda _, sigma_next: (0 * sigma_next, sigma_next)
    )


@sampler("tcd", order=0, stochastic=True)
def tcd(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, gamma: float = 0.3
) -> Iterator[SamplerStep]:
    """Past the next level and back up with fresh noise, for TCD models (Zheng et al. 2024, alg. 4).

    gamma: how far past, of the way from σ_next to 0; 0 is Euler's method, 1 is lcm. Their γ counts
    time steps, which a list of σ does not have; to an exact answer any measure of the way will do.
    """
    if not 0 <= gamma <= 1:
        raise UndustError(f"gamma: {gamma} is outside 0 (no fresh noise) … 1 (all of it fresh)")

    def split(_: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
        down = (1 - gamma) * sigma_next
        return down, (sigma_next**2 - down**2).sqrt()

    return one_step_solver(denoise, x, sigmas, noise, split)
