"""Predictor-corrector methods: a step from past estimates, repeated with the estimate at its end.

The estimate at the end is also the next step's first one, so the correction costs no network call.
UniPC and SA-Solver are one method: Adams' mean of x0 over the step, without and with fresh noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from torch import Tensor

from undust.diffusion.samplers.adams import Answer, in_range, largest, mean, usable
from undust.diffusion.samplers.euler import euler_step
from undust.diffusion.samplers.registry import Denoise, Noise, SamplerStep, sampler
from undust.errors import UndustError

First = Callable[[float], float]
"""Length of a step times its rate -> the first moment for two estimates, ½ + O(length)."""


def _bh1(length: float) -> float:
    return length / 2 / -math.expm1(-length)


def _bh2(_length: float) -> float:
    return 0.5


def _walk(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    predictor: int,
    corrector: int,
    first: First,
    tau: float,
) -> Iterator[SamplerStep]:
    """Steps with polynomials through at most `predictor` and `corrector` estimates.

    The equation is dx = (1 + τ²)·(x0 − x) dλ + √2·τσ dw (Xue et al. 2023): its linear part takes
    x down to σ_next·(σ_next/σ)^{τ²}, and noise is added up to σ_next.
    """
    levels = (-sigmas.log()).tolist()
    rate = 1 + tau**2
    bound = largest(levels)
    ahead = denoise(x, sigmas[0])
    past: list[Answer] = []
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        start, end = levels[index : index + 2]
        past = usable([(start, ahead), *past][: max(predictor, corrector - 1)], end)
        estimate, fresh = ahead, 0.0
        down = sigma_next * (sigma_next / sigma) ** tau**2
        if tau > 0 and sigma_next > 0:
            fresh = (sigma_next**2 - down**2).sqrt() * noise(sigma, sigma_next)
        if sigma_next > 0:
            step = start, end, rate, first(rate * (end - start)), bound
            estimate = mean(past[:predictor], *step)
            if index + 2 < len(sigmas):  # the last step is not corrected
                ahead = denoise(euler_step(x, estimate, sigma, down) + fresh, sigma_next)
                estimate = mean([(end, ahead), *past[: corrector - 1]], *step)
        x = euler_step(x, estimate, sigma, down) + fresh
        yield SamplerStep(index, sigma_next, x, estimate)


@sampler("unipc", order=3)
def unipc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    order: int = 2,
    variant: str = "bh2",
) -> Iterator[SamplerStep]:
    """UniPC of order 1, 2 or 3, corrected by one order without further calls (Zhao et al. 2023).

    Their section 3. variant: their B(h), "bh1" = h or "bh2" = e^h − 1, which only affects
    coefficients for two estimates. The first step is of second order for every option, so order=3
    measures as 3 instead of 4; as 4 from pure noise, where that step makes almost no error. The
    last step is not corrected.
    """
    in_range("order", order, 1, 3)
    variants: dict[str, First] = {"bh1": _bh1, "bh2": _bh2}
    if variant not in variants:
        raise UndustError(f"variant: '{variant}' is neither 'bh1' nor 'bh2'")
    return _walk(
        denoise,
        x,
        sigmas,
        noise,
        predictor=order,
        corrector=order + 1,
        first=variants[variant],
        tau=0.0,
    )


@sampler("sa-solver", order=2, stochastic=True, strong=1.0, path=True)
def sa_solver(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    tau: float = 1.0,
    predictor: int = 2,
    corrector: int = 2,
) -> Iterator[SamplerStep]:
    """SA-Solver (Xue et al. 2023, algorithm 1); 5 times the variance at 7 steps, right from 30.

    Adams' predictor and corrector with fresh noise. On a Gaussian the variance at 7 steps of
    "karras" is 5 to 14 times the true one: the published first moment, h/2 of a step of length h,
    extrapolates beyond the end of long steps.
    tau: scale of the noise, 0 none, 1 that of the reversed forward process; predictor, corrector:
    number of estimates of each, the corrector's including the one at the end. The weak order is 2;
    a path of the noise is followed with the error of one mean per step, O(τ·h).
    """
    if not (tau >= 0 and math.isfinite(tau)):
        raise UndustError(f"tau: {tau} has to be 0 (no fresh noise) or more, and finite")
    return _walk(
        denoise,
        x,
        sigmas,
        noise,
        predictor=in_range("predictor", predictor, 1, 3),
        corrector=in_range("corrector", corrector, 2, 4),
        first=_bh1,
        tau=tau,
    )
