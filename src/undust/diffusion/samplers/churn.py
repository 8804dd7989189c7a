"""Noise put on and taken off again: what the probability flow got wrong, fresh noise forgets."""

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
    """Puts so much noise on x at level `low` that it is at `high`."""
    return x + strength * (high**2 - low**2).sqrt() * noise(low, high)


def _fall(denoise: Denoise, x: Tensor, sigma: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """A step of Heun's method, Euler's to 0: x there and the estimate that it was made with."""
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

    Before a step, noise is put on until σ is (1 + s_churn/steps)·σ, √2·σ at most, where σ lies in
    s_tmin … s_tmax; the defaults are theirs for ImageNet (table 5). s_noise: its strength, which
    they raise to 1.003 against a network that takes off too much; other than 1 it is not exact for
    a perfect denoiser. The step to 0 is left as it is: on x0 itself, noise could only blur.
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
    """Heun's method that goes back up to some noise and down again (Xu et al. 2023, algorithm 2).

    Of the levels in the list, those in low … high are walked `times` times more, each time with
    fresh noise from the lowest to the highest; all of that is part of the step that reaches the
    lowest first. A list with fewer than two levels in there is walked once, as heun does.
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
