"""Adams' methods: a polynomial through past estimates, integrated over the next step.

In λ = −log σ seed 001, eq. 6 is dx/dλ = x0 − x, or dx = n dσ with the noise n = (x − x0)/σ. In both
cases a step equals one with a constant estimate, its mean over the step with the weight e^{rλ}:
r = 1 for x0, r = −1 for n. For a polynomial in λ this mean is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from undust.diffusion.samplers.euler import euler_step
from undust.diffusion.samplers.registry import Denoise, Noise, SamplerStep, sampler
from undust.errors import UndustError

Answer = tuple[float, Tensor]
"""(λ, the estimate of x0 or of the noise there [B, …])."""

UNEVEN = 24.0  # ratio of a step to an earlier one; named schedules stay below
STABLE = 4.0  # bound on Σ|factors| that limits amplified errors; even steps have 2 to 3.7


def in_range(option: str, value: int, low: int, high: int) -> int:
    """The value; UndustError if it is outside low … high."""
    if not low <= value <= high:
        raise UndustError(f"{option}: {value} is outside {low} … {high}")
    return value


def moments(rate: float, count: int) -> list[float]:
    """The means of 1, s, s², … over 0 ≤ s ≤ 1 with the weight e^{rate·s}; `count` of them.

    With I_j = ∫ s^j e^{rate·(s−1)} ds, integration by parts gives rate·I_j = 1 − j·I_{j−1}. Upward
    recursion loses digits for small rates, downward recursion for large ones.
    """
    if abs(rate) < 1:
        integrals = [0.0]  # I_j for j so large that its error is negligible, by rate^j/j!
        for j in range(24, 0, -1):
            integrals.insert(0, (1 - rate * integrals[0]) / j)
    else:
        integrals = [-math.expm1(-rate) / rate]
        for j in range(1, count):
            integrals.append((1 - j * integrals[-1]) / rate)
    return [integral / integrals[0] for integral in integrals[:count]]


def weights(places: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """The weights of values at some places such that polynomials have the wanted moments.

    places: distinct, in units of the step from its start; wanted: as many moments.
    """
    powers = torch.tensor(places, dtype=torch.float64) ** torch.arange(len(places))[:, None]
    return torch.linalg.solve(powers, powers.new_tensor(wanted)).tolist()


def weighed(factors: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """Σ factor·tensor; for one tensor with factor 1 exactly that tensor."""
    return torch.stack([f * t for f, t in zip(factors, tensors, strict=True)]).sum(0)


def uneven(newer: float, older: float, step: float) -> bool:
    """Whether a step of that length is too long to extrapolate from two estimates at these λ.

    Two estimates at a distance h extrapolate over a similar length. Over a step of 24·h their
    difference, including its error, is multiplied by 24, and by more in third order.
    """
    return step > UNEVEN * (newer - older)


def usable(past: list[Answer], end: float) -> list[Answer]:
    """The estimates, newest first, that a step to λ = end may extrapolate from."""
    for count, ((newer, _), (older, _)) in enumerate(pairwise(past), 1):
        if uneven(newer, older, end - past[0][0]):
            return past[:count]
    return past


def largest(levels: Sequence[float]) -> float:
    """The bound on Σ|factors| for this list of λ: infinite unless its steps are uneven.

    With fresh noise the estimates contain noise too, which every step multiplies by its factors.
    Named schedules have few steps too long for that; listed σ may have any.
    """
    lengths = [newer - older for older, newer in pairwise(levels) if newer < math.inf]
    pairs = [*pairwise(lengths), *zip(lengths, lengths[2:], strict=False)]
    uneven = any(step > UNEVEN * before for before, step in pairs)
    sudden = any(before > 2 * UNEVEN * step for before, step in pairwise(lengths))
    return STABLE if uneven or sudden else math.inf


def mean(
    answers: Sequence[Answer],
    start: float,
    end: float,
    rate: float,
    first: float | None = None,
    bound: float = math.inf,
) -> Tensor:
    """The mean from λ = start to end, weighted by e^{rate·λ}, of a polynomial through the answers.

    first: the first moment in place of the exact one for two answers; bound: on Σ|factors|, beyond
    which the last answer is dropped.
    """
    length = end - start
    wanted = moments(rate * length, len(answers))
    if first is not None and len(answers) == 2:
        wanted[1] = first
    places = [(place - start) / length for place, _ in answers]
    factors = weights(places, wanted)
    if len(answers) > 1 and sum(map(abs, factors)) > bound:
        return mean(answers[:-1], start, end, rate, first, bound)
    return weighed(factors, [answer for _, answer in answers])


@sampler("deis", order=2)
def deis(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, order: int = 2
) -> Iterator[SamplerStep]:
    """DEIS: the noise extrapolated from the last 1, 2 or 3 calls (Zhang & Chen 2023).

    The polynomial is in λ, not in a process's own time as in their tAB, which a list of σ does not
    have. Early steps use fewer estimates, so the first one is Euler's and the order is 2 also with
    order=3 (with a smaller error); the last step, to λ = ∞, is Euler's too.
    """
    del noise
    in_range("order", order, 1, 3)
    levels = (-sigmas.log()).tolist()
    past: list[Answer] = []
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slope = (x - x0) / sigma
        past = usable([(levels[index], slope), *past][:order], levels[index + 1])
        if sigma_next > 0:
            # x − σ·mean, written so that no digits of x0 are lost where σ is large.
            x0 = x0 + sigma * (slope - mean(past, *levels[index : index + 2], rate=-1.0))
        x = euler_step(x, x0, sigma, sigma_next)
        yield SamplerStep(index, sigma_next, x, x0)


@sampler("dpmpp-3m", order=3)
def dpmpp_3m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[SamplerStep]:
    """DPM-Solver++(3M), third order at one network call a step (after Lu et al. 2022b).

    The first step makes two calls, as an Euler step would leave an error of second order. The
    published code, also in diffusers, halves the third-order term and so is of second order; here
    the integral is exact.
    """
    del noise
    levels = (-sigmas.log()).tolist()
    past: list[Answer] = []
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        step = levels[index : index + 2]
        estimate = denoise(x, sigma)
        past = usable([(step[0], estimate), *past][:3], step[1])
        if sigma_next > 0:
            known = past
            if index == 0:
                ahead = denoise(euler_step(x, estimate, sigma, sigma_next), sigma_next)
                known = [(step[1], ahead), *past]
            estimate = mean(known, *step, rate=1.0)
        x = euler_step(x, estimate, sigma, sigma_next)
        yield SamplerStep(index, sigma_next, x, estimate)
