"""Solvers of the reverse equation with noise, dx = −(1 + η)(x − x0) dλ + √(2η)·σ dw in λ = −log σ.

Its linear part takes x to σ_next·(σ_next/σ)^η exactly; noise is added up to σ_next. The weak order
is 2. A path of Brownian noise is followed to first order only, as by Euler's method: within a step
the estimate changes with the noise, which no extrapolation predicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from undust.diffusion.samplers.adams import Answer, largest, mean, usable
from undust.diffusion.samplers.dpm import halfway
from undust.diffusion.samplers.euler import ancestral, euler_step
from undust.diffusion.samplers.registry import Denoise, Noise, SamplerStep, sampler
from undust.errors import UndustError


def _multistep(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    eta: float,
    count: int,
    first: float | None = None,
) -> Iterator[SamplerStep]:
    """Steps with the mean of the polynomial through the last `count` estimates."""
    if eta < 0:
        raise UndustError(f"eta: {eta} is below 0 (no fresh noise)")
    levels = (-sigmas.log()).tolist()
    bound = largest(levels)
    past: list[Answer] = []
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        past = usable([(levels[index], x0), *past][:count], levels[index + 1])
        kept = (sigma_next / sigma) ** eta
        if sigma_next > 0:
            step = levels[index : index + 2]
            x0 = mean(past, *step, rate=1 + eta, first=first, bound=bound)
        x = euler_step(x, x0, sigma, sigma_next * kept)
        if sigma_next > 0 and eta > 0:
            x = x + sigma_next * (1 - kept**2).sqrt() * noise(sigma, sigma_next)
        yield SamplerStep(index, sigma_next, x, x0)


@sampler("dpmpp-2m-sde", order=2, stochastic=True, strong=1.0, path=True)
def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    eta: float = 1.0,
    solver: str = "midpoint",
) -> Iterator[SamplerStep]:
    """SDE-DPM-Solver++(2M), one network call a step (Lu et al. 2022b, §5).

    solver: "midpoint", the paper's, applies the estimate's change at half the step, "heun" by the
    integral; eta: scale of the noise, 1 as in the paper, 0 for none (dpmpp-2m).
    """
    middle = {"midpoint": 0.5, "heun": None}
    if solver not in middle:
        raise UndustError(f"solver: '{solver}' is neither 'midpoint' nor 'heun'")
    return _multistep(denoise, x, sigmas, noise, eta, 2, middle[solver])


@sampler("dpmpp-3m-sde", order=2, stochastic=True, strong=1.0, path=True)
def dpmpp_3m_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, eta: float = 1.0
) -> Iterator[SamplerStep]:
    """DPM-Solver++(3M) with noise (k-diffusion); 3 times the variance at 7 steps, right from 15.

    One network call a step. k-diffusion halves the third-order term; here the integral is exact. In
    few steps both amplify the noise in the estimates: on a Gaussian the variance at 7 steps of
    "karras" is 3.0 to 3.9 times the true one, k-diffusion's 2.4 to 3.1.
    """
    return _multistep(denoise, x, sigmas, noise, eta, 3)


@sampler("dpmpp-sde", order=2, stochastic=True, strong=1.0, path=True)
def dpmpp_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, eta: float = 1.0
) -> Iterator[SamplerStep]:
    """DPM-Solver++ with noise, two network calls a step (k-diffusion, after Lu et al. 2022b).

    A step uses the estimate at its midpoint, with noise drawn over half of the step and over all of
    it. Of second order if both are from one Brownian path, of first if they are independent.
    """
    split = ancestral(eta)

    def go(x: Tensor, x0: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        down, up = split(sigma, sigma_next)
        x = euler_step(x, x0, sigma, down)
        return x + up * noise(sigma, sigma_next) if up > 0 else x

    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if sigma_next > 0:
            middle = halfway(sigma, sigma_next)
            x0 = denoise(go(x, x0, sigma, middle), middle)
        x = go(x, x0, sigma, sigma_next)
        yield SamplerStep(index, sigma_next, x, x0)
