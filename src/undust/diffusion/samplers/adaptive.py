"""Samplers with adaptive steps, controlled by an error estimate from two orders of a method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from undust.diffusion.samplers.adams import weighed
from undust.diffusion.samplers.dpm import aim, second_and_third
from undust.diffusion.samplers.euler import euler_step, expand_like
from undust.diffusion.samplers.registry import Denoise, Noise, SamplerStep, reached, sampler
from undust.errors import UndustError

FIRST = 0.05  # length of the first step in λ = −log σ
SAFETY = 0.81  # a step is accepted if the controller's factor for the next one is at least this

Pair = Callable[[Denoise, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]
"""(denoise, x, x0, σ, σ_next) -> x of the lower order, the estimate of the higher order, and the
denoiser's estimate at its result if the method computes it, else None.

σ and σ_next are [B], for each picture."""


def _control(errors: Tensor, order: int, pid: tuple[float, float, float]) -> Tensor:
    """The factor of the next step's length: a PID controller (Söderlind 2003), softly limited.

    The limit is that of Söderlind & Wang 2006. errors: [3, B], of this attempt and of the last two
    accepted steps, in units of the bound.
    """
    p, i, d = pid
    exponents = errors.new_tensor([p + i + d, -p - 2 * d, d]) / order
    longer = (errors + 1e-8).pow(-exponents[:, None]).prod(0)
    return 1 + (longer - 1).atan()


def _walk(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    pair: Pair,
    order: int,
    rtol: float,
    atol: float,
    pid: tuple[float, float, float] = (0.0, 1.0, 0.0),
) -> Iterator[SamplerStep]:
    """Steps for each picture separately, independent of the rest of the batch.

    Finished pictures wait for the others. The bound is max(atol, rtol·|x|), on the root mean square
    over the picture.
    """
    if not (rtol > 0 and atol > 0):
        raise UndustError(f"rtol and atol: both have to be above 0, not {rtol} and {atol}")
    end = sigmas[-1] if sigmas[-1] > 0 else sigmas[-2]
    level = sigmas[:1].repeat(len(x))
    length = torch.full_like(level, FIRST)
    x0 = here = denoise(x, sigmas[0])
    before, errors = x, None
    while level.max() > end:
        ahead = torch.maximum(level * (-length).exp(), end)
        low, estimate, there = pair(denoise, x, here, level, ahead)
        high = euler_step(x, estimate, level, ahead)
        scale = (rtol * torch.maximum(low.abs(), before.abs())).clamp(min=atol)
        error = ((low - high) / scale).flatten(1).square().mean(1).sqrt().to(level)
        past = (error, error) if errors is None else errors
        longer = _control(torch.stack([error, *past]), order, pid)
        length = length * longer
        taken = (longer >= SAFETY) & (level > end)
        errors = torch.where(taken, error, past[0]), torch.where(taken, past[0], past[1])
        highest = level.max()
        level = torch.where(taken, ahead, level)
        took = expand_like(taken, x).bool()
        x, x0, before = (
            torch.where(took, new, old) for new, old in [(high, x), (estimate, x0), (low, before)]
        )
        if taken.any():
            here = torch.where(took, denoise(x, level) if there is None else there, here)
        if level.max() < highest:
            yield SamplerStep(reached(sigmas, level.max()), level.max(), x, x0)
    if end > sigmas[-1]:
        yield SamplerStep(len(sigmas) - 2, sigmas[-1], here, here)


def dpm_solver_23(
    denoise: Denoise, x: Tensor, x0: Tensor, sigma: Tensor, down: Tensor
) -> tuple[Tensor, Tensor, None]:
    """DPM-Solver of orders 2 and 3 from the same calls."""
    second, third = second_and_third(denoise, x, x0, sigma, down)
    return euler_step(x, second, sigma, down), third, None


@sampler("dpm-adaptive", order=3, adaptive=True, finite=True)
def dpm_adaptive(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    rtol: float = 0.05,
    atol: float = 0.0078,
    pid: tuple[float, float, float] = (0.0, 1.0, 0.0),
) -> Iterator[SamplerStep]:
    """DPM-Solver-23: steps in log σ chosen by an error bound (Lu et al. 2022a, appendix C).

    It uses only the ends of the list of σ. rtol, atol: relative and absolute bound on a step's
    error (the paper's); pid: the controller's three coefficients, the paper's by default.
    """
    del noise
    return _walk(denoise, x, sigmas, dpm_solver_23, 3, rtol, atol, pid)


# Dormand & Prince 1980, RK5(4)7M: nodes, weights of the stages, and the weights of fifth order (the
# last row of the stages) minus those of fourth.
PLACES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
DIFFERENCE = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def dormand_prince(
    denoise: Denoise, x: Tensor, x0: Tensor, sigma: Tensor, down: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes as the estimates that they point to, as dx/dσ = (x − x0)/σ is linear in x0."""
    aims, seen, estimate = [x0], x0, x0
    for place, stage in zip(PLACES, STAGES, strict=True):
        estimate = weighed([weight / place for weight in stage], aims)
        seen, aimed = aim(denoise, x, estimate, sigma, torch.lerp(sigma, down, place))
        aims.append(aimed)
    off = expand_like(1 - down / sigma, x) * weighed(DIFFERENCE, aims)
    return euler_step(x, estimate, sigma, down) - off, estimate, seen


@sampler("rk45", order=5, adaptive=True, finite=True)
def rk45(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    rtol: float = 1e-3,
    atol: float = 1e-3,
) -> Iterator[SamplerStep]:
    """Dormand and Prince's method (1980) on the flow in σ: steps chosen by an error bound.

    It uses only the ends of the list of σ. rtol, atol: relative and absolute bound on a step's
    error.
    """
    del noise
    # A margin such that steps accepted by SAFETY are within the bound.
    margin = (1 + math.tan(SAFETY - 1)) ** 5
    return _walk(denoise, x, sigmas, dormand_prince, 5, margin * rtol, margin * atol)
