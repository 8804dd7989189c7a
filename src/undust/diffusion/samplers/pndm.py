"""Pseudo numerical methods: textbook slopes, carried along the denoiser's straight lines.

The slopes are averaged as if the list of σ were even in some time; the mean then goes the way of
Euler's step, so that a constant slope is followed exactly whatever the list (Liu et al. 2022,
eq. 9). The weights fit the time but not σ, which curves in it: all of these are of second order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from torch import Tensor

from undust.diffusion.samplers.adams import moments, weighed, weights
from undust.diffusion.samplers.euler import euler_step
from undust.diffusion.samplers.registry import Denoise, Noise, SamplerStep, sampler

Slope = Callable[[Tensor, Tensor], Tensor]
"""(x, σ) -> the noise in it, (x − x0)/σ."""
Start = Callable[[Slope, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(slope, x, its own slope, σ, σ_next) -> the slope of a step that has no past."""

# Adams and Bashforth's, of 1 to 4 slopes: …, (55, −59, 37, −9)/24.
WEIGHTS = [weights([-i for i in range(count)], moments(0, count)) for count in range(1, 5)]


def _heun(slope: Slope, x: Tensor, here: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    return (here + slope(x + (sigma_next - sigma) * here, sigma_next)) / 2


def _runge_kutta(
    slope: Slope, x: Tensor, here: Tensor, sigma: Tensor, sigma_next: Tensor
) -> Tensor:
    """The classical fourth-order mean; half-way means half-way in log σ."""
    middle = (sigma * sigma_next).sqrt()
    second = slope(x + (middle - sigma) * here, middle)
    third = slope(x + (middle - sigma) * second, middle)
    last = slope(x + (sigma_next - sigma) * third, sigma_next)
    return (here + 2 * second + 2 * third + last) / 6


def _walk(
    denoise: Denoise, x: Tensor, sigmas: Tensor, start: Start, starts: int
) -> Iterator[SamplerStep]:
    """Begins with so many steps of `start`; its slopes are past to those that follow."""

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        return (x - denoise(x, sigma)) / sigma

    past: list[Tensor] = []
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        here = (x - x0) / sigma
        past = [here, *past][:4]
        if index < starts and sigma_next > 0:
            mean = start(slope, x, here, sigma, sigma_next)
        else:
            mean = weighed(WEIGHTS[len(past) - 1], past)
        # x − σ·mean, written so that no digits of x0 are lost where σ is large.
        x0 = x0 + sigma * (here - mean)
        x = euler_step(x, x0, sigma, sigma_next)
        yield SamplerStep(index, sigma_next, x, x0)


@sampler("pndm", order=2, finite=True)
def pndm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[SamplerStep]:
    """Four past slopes, after three steps of Runge-Kutta's (Liu et al. 2022, algorithm 2, F-PNDM).

    Each of the first three steps calls the network four times.
    """
    del noise
    return _walk(denoise, x, sigmas, _runge_kutta, 3)


@sampler("plms", order=2, finite=True)
def plms(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[SamplerStep]:
    """Four past slopes, after one step of Heun's (as in Rombach et al. 2022, after Liu et al.).

    The first step calls the network twice.
    """
    del noise
    return _walk(denoise, x, sigmas, _heun, 1)


@sampler("ipndm", order=2)
def ipndm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[SamplerStep]:
    """Four past slopes, at first as many as there are (Zhang & Chen 2023, iPNDM).

    With the weights of the real steps in σ, its variant iPNDM-v, it is `lms`.
    """
    del noise
    return _walk(denoise, x, sigmas, _heun, 0)
