"""DPM-Solver++(2M): an exact linear part and an extrapolated estimate."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from undust.diffusion.samplers.euler import euler_step
from undust.diffusion.samplers.registry import Denoise, Noise, SamplerStep, sampler


@sampler("dpmpp-2m", order=2)
def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[SamplerStep]:
    """DPM-Solver++(2M), second order at one network call a step (Lu et al. 2022b, algorithm 2)."""
    del noise
    before: tuple[Tensor, Tensor] | None = None  # the last estimate, and the length of its step
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        estimate = x0 = denoise(x, sigma)
        length = (sigma / sigma_next).log()  # in λ = −log σ; infinite when the step ends at 0
        if before is not None and sigma_next > 0:
            last, last_length = before
            estimate = x0 + length / (2 * last_length) * (x0 - last)
        x = euler_step(x, estimate, sigma, sigma_next)
        before = x0, length
        yield SamplerStep(index, sigma_next, x, estimate)
