"""Samplers that add fresh noise and remove it again, which contracts earlier errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from undust.diffusion.samplers.euler import euler_step
from undust.diffusion.samplers.heun import both
from undust.diffusion.samplers.registry import Denoise, Noise, SamplerStep, sampler
from undust.errors import UndustError


def _rise(x: Tensor, noise: Noise, low: Tensor, high: Tensor, strength: float = 1.0) -> Tensor:
    """Adds noise to x from level `low` to `high`."""
    return x + strength * (high**2 - low**2).sqrt() * noise(low, high)


def _fall(denoise: Denoise, x: Tensor, sigma: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """A step of Heun's method, or Euler's to 0: x and the estimate used."""
    x0 = denoise(x, sigma)
    if down > 0:
        x0 = both(denoise, x, x0, sigma, down)
    return euler_step(x, x0, sigma, down), x0


@sampler("edm", order=2, stochastic=True, finite=True)
def edm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    s_churn: float = 40.0,
    s_tmin: float = 0.05,
    s_tmax: float = 50.0,
    s_noise: float = 1.0,
) -> Iterator[SamplerStep]:
    """Heun's method with the stochastic churn of EDM (Karras et al. 2022, algorithm 2).

    Before a step from σ in s_tmin … s_tmax, noise is added up to (1 + s_churn/steps)·σ, at most
    √2·σ; the defaults are theirs for ImageNet (table 5). s_noise: scale of that noise, which they
    raise to 1.003 for networks that remove too much; values other than 1 are not exact for a
    perfect denoiser. No noise is added before the step to 0.
    """
    if not (s_churn >= 0 and s_noise >= 0):
        raise UndustError(f"s_churn and s_noise: {s_churn} and {s_noise}, but none is below 0")
    share = min(s_churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        risen = sigma
        if share > 0 and s_tmin <= sigma <= s_tmax and sigma_next > 0:
            risen = sigma * (1 + share)
            x = _rise(x, noise, sigma, risen, s_noise)
        x, x0 = _fall(denoise, x, risen, sigma_next)
        yield SamplerStep(index, sigma_next, x, x0)


@sampler("restart", order=2, stochastic=True, finite=True)
def restart(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    low: float = 0.1,
    high: float = 2.0,
    times: int = 1,
) -> Iterator[SamplerStep]:
    """Heun's method with repetitions of a range of levels (Xu et al. 2023, algorithm 2).

    The levels of the list in low … high are repeated `times` times, each time after fresh noise
    from the lowest to the highest, as part of the step that first reaches the lowest. With fewer
    than two levels in the range it equals heun.
    """
    if times < 0 or not 0 < low < high:
        raise UndustError(f"restart: {times} times between {low} and {high} is not possible")
    again = sigmas[(sigmas >= low) & (sigmas <= high)]
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x, x0 = _fall(denoise, x, sigma, sigma_next)
        if len(again) > 1 and sigma_next == again[-1]:
            for _ in range(times):
                x = _rise(x, noise, again[-1], again[0])
                for above, below in pairwise(again):
                    x, x0 = _fall(denoise, x, above, below)
        yield SamplerStep(index, sigma_next, x, x0)
