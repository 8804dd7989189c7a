"""Pseudo numerical methods: mean slopes of classical methods, applied as in Euler's method.

The slopes are averaged as if the list of σ were even in some time; the mean is used in an Euler
step, which is exact for constant slopes (Liu et al. 2022, eq. 9). The weights are for that time and
not for σ, so all of these are of second order.
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
"""(slope, x, the slope at x, σ, σ_next) -> the slope of a step without earlier slopes."""

# Adams and Bashforth's, of 1 to 4 slopes: …, (55, −59, 37, −9)/24.
WEIGHTS = [weights([-i for i in range(count)], moments(0, count)) for count in range(1, 5)]


def _heun(slope: Slope, x: Tensor, here: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    return (here + slope(x + (sigma_next - sigma) * here, sigma_next)) / 2


def _runge_kutta(
    slope: Slope, x: Tensor, here: Tensor, sigma: Tensor, sigma_next: Tensor
) -> Tensor:
    """The classical fourth-order mean, with the midpoint in log σ."""
    middle = (sigma * sigma_next).sqrt()
    second = slope(x + (middle - sigma) * here, middle)
    third = slope(x + (middle - sigma) * second, middle)
    last = slope(x + (sigma_next - sigma) * third, sigma_next)
    return (here + 2 * second + 2 * third + last) / 6


def _walk(
    denoise: Denoise, x: Tensor, sigmas: Tensor, start: Start, starts: int
) -> Iterator[SamplerStep]:
    """The first `starts` steps by `start`, then from the last four slopes."""

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
    """F-PNDM: four past slopes, after three Runge-Kutta steps (Liu et al. 2022, algorithm 2).

    Each of the first three steps calls the network four times.
    """
    del noise
    return _walk(denoise, x, sigmas, _runge_kutta, 3)


@sampler("plms", order=2, finite=True)
def plms(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[SamplerStep]:
    """PLMS: four past slopes, after one step of Heun's (Rombach et al. 2022, after Liu et al.).

    The first step calls the network twice.
    """
    del noise
    return _walk(denoise, x, sigmas, _heun, 1)


@sampler("ipndm", order=2)
def ipndm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[SamplerStep]:
    """iPNDM: up to four past slopes (Zhang & Chen 2023).

    Its variant iPNDM-v, with weights for the steps in σ, is `lms`.
    """
    del noise
    return _walk(denoise, x, sigmas, _heun, 0)
