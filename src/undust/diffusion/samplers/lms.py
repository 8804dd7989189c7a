"""The linear multistep method in σ (k-diffusion)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from undust.diffusion.samplers.adams import in_range, moments, weighed, weights
from undust.diffusion.samplers.euler import euler_step
from undust.diffusion.samplers.registry import Denoise, Noise, SamplerStep, sampler


@sampler("lms", order=2)
def lms(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, order: int = 4
) -> Iterator[SamplerStep]:
    """Adams and Bashforth's method in σ at uneven steps: the slopes of the last 1 to 4 calls.

    The polynomial through the slopes is integrated exactly. The first step is Euler's, whose error
    limits the order to 2. So is the step to 0, which is too long to extrapolate over.
    """
    del noise
    in_range("order", order, 1, 4)
    past: list[Tensor] = []
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        past = [x0, *past][:order]
        if sigma_next > 0:
            levels = sigmas[: index + 1].flip(0)[:order]
            places = ((sigma - levels) / (sigma - sigma_next)).tolist()
            x0 = weighed(weights(places, moments(0, len(past))), past)
        x = euler_step(x, x0, sigma, sigma_next)
        # Slopes are stored as the estimates that they point to from x, which move along with x.
        # Slopes themselves would lose digits of x0 at large σ.
        past = [euler_step(estimate, x0, sigma, sigma_next) for estimate in past]
        yield SamplerStep(index, sigma_next, x, x0)
