"""DPM-Solver: single-step methods of second and third order for the probability flow.

The methods of Lu et al. 2022a, stated there for the noise, combine estimates in x = x0 + σ·n: the
slope at an intermediate point is used as the estimate that it points to from x.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from undust.diffusion.samplers.adams import moments
from undust.diffusion.samplers.euler import (
    Refine,
    ancestral,
    deterministic_split,
    euler_step,
    expand_like,
    one_step_solver,
)
from undust.diffusion.samplers.registry import Denoise, Noise, SamplerStep, reached, sampler


def aim(
    denoise: Denoise, x: Tensor, estimate: Tensor, sigma: Tensor, there: Tensor
) -> tuple[Tensor, Tensor]:
    """The estimate after a step to level `there`, and the x0 that its slope points to from x.

    The second is the x0 for which (x − x0)/σ equals the slope at `there`.
    """
    seen = denoise(euler_step(x, estimate, sigma, there), there)
    return seen, euler_step(seen, estimate, there, sigma)


def halfway(sigma: Tensor, down: Tensor) -> Tensor:
    """The midpoint of a step in λ = −log σ."""
    return (sigma * down).sqrt()


def centre(length: Tensor) -> Tensor:
    """The mean position in λ of a step of that length h, weighted by dσ: 1/h − 1/(eʰ − 1)."""
    means = [moments(-h, 2)[1] for h in length.flatten().tolist()]
    return length.new_tensor(means).reshape(length.shape)


def _second(denoise: Denoise, x: Tensor, x0: Tensor, sigma: Tensor, down: Tensor) -> Tensor:
    """Lu et al. 2022a, algorithm 1: the slope at the midpoint in λ."""
    return aim(denoise, x, x0, sigma, halfway(sigma, down))[1]


def second_and_third(
    denoise: Denoise, x: Tensor, x0: Tensor, sigma: Tensor, down: Tensor
) -> tuple[Tensor, Tensor]:
    """The estimates of both orders from two calls (Lu et al. 2022a, algorithms 4 and 5, r₁ = ⅓)."""
    length = (sigma / down).log()
    _, first = aim(denoise, x, x0, sigma, sigma * (-length / 3).exp())
    further = x0 + expand_like(2 * centre(length * 2 / 3), x) * (first - x0)
    _, further = aim(denoise, x, further, sigma, sigma * (-length * 2 / 3).exp())
    return x0 + 1.5 * (first - x0), x0 + expand_like(1.5 * centre(length), x) * (further - x0)


def _third(denoise: Denoise, x: Tensor, x0: Tensor, sigma: Tensor, down: Tensor) -> Tensor:
    return second_and_third(denoise, x, x0, sigma, down)[1]


def _middle(denoise: Denoise, x: Tensor, x0: Tensor, sigma: Tensor, down: Tensor) -> Tensor:
    """DPM-Solver++(2S) with r = ½: the estimate at the midpoint (Lu et al. 2022b, algorithm 1)."""
    return aim(denoise, x, x0, sigma, halfway(sigma, down))[0]


@sampler("dpm-solver-1", order=1)
def dpm_solver_1(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise
) -> Iterator[SamplerStep]:
    """DPM-Solver-1, which is Euler's method (Lu et al. 2022a, eq. 3.7)."""
    return one_step_solver(denoise, x, sigmas, noise, deterministic_split)


@sampler("dpm-solver-2", order=2)
def dpm_solver_2(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise
) -> Iterator[SamplerStep]:
    """DPM-Solver-2, two network calls a step (Lu et al. 2022a, algorithm 1)."""
    return one_step_solver(denoise, x, sigmas, noise, deterministic_split, _second)


@sampler("dpm-solver-3", order=3)
def dpm_solver_3(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise
) -> Iterator[SamplerStep]:
    """DPM-Solver-3, three network calls a step (Lu et al. 2022a, algorithm 2)."""
    return one_step_solver(denoise, x, sigmas, noise, deterministic_split, _third)


@sampler("dpm2", order=2)
def dpm2(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[SamplerStep]:
    """The midpoint method in log σ (k-diffusion); in x = x0 + σ·n equal to dpm-solver-2."""
    return one_step_solver(denoise, x, sigmas, noise, deterministic_split, _second)


@sampler("dpm2-ancestral", order=2, stochastic=True, strong=1.0, path=True, finite=True)
def dpm2_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, eta: float = 1.0
) -> Iterator[SamplerStep]:
    """The midpoint method in log σ with fresh noise, two network calls a step (k-diffusion).

    The flow to a lower level and the noise back up both preserve the distribution, so the order is
    the flow's; the path of the noise is followed no better than by euler-ancestral.
    """
    return one_step_solver(denoise, x, sigmas, noise, ancestral(eta), _second)


@sampler("dpmpp-2s-ancestral", order=2, stochastic=True, strong=1.0, path=True)
def dpmpp_2s_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, eta: float = 1.0
) -> Iterator[SamplerStep]:
    """DPM-Solver++(2S) with fresh noise, two network calls a step (after Lu et al. 2022b, alg. 1).

    Orders as for dpm2-ancestral, for the same reason.
    """
    return one_step_solver(denoise, x, sigmas, noise, ancestral(eta), _middle)


@sampler("dpm-fast", order=2, finite=True)
def dpm_fast(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[SamplerStep]:
    """DPM-Solver-fast: as many network calls as steps (Lu et al. 2022a, §3.3).

    It uses only the ends and the length of the list; its own steps are even in log σ and of third
    order, except for the last one or two. The order is 3 if the number of calls modulo 3 is 2, else
    a last step of first order reduces it to 2.
    """
    del noise
    clean = sigmas[-1] == 0  # the step to 0, at log σ = −∞, takes one call
    end = sigmas[-2] if clean else sigmas[-1]
    thirds, left = divmod(len(sigmas) - 1 - int(clean), 3)
    methods: list[Refine | None] = [_third] * thirds
    if left:
        methods.append(_second if left == 2 else None)
    elif thirds:
        methods[-1:] = [_second, None]
    evenly = torch.linspace(0, 1, len(methods) + 1, dtype=sigmas.dtype)
    levels = sigmas[0] * (end / sigmas[0]) ** evenly
    levels[-1] = end
    for sigma, sigma_next, refine in zip(levels, levels[1:], methods, strict=False):
        x0 = denoise(x, sigma)
        if refine is not None:
            x0 = refine(denoise, x, x0, sigma, sigma_next)
        x = euler_step(x, x0, sigma, sigma_next)
        yield SamplerStep(reached(sigmas, sigma_next), sigma_next, x, x0)
    if clean:
        x0 = denoise(x, end)
        yield SamplerStep(len(sigmas) - 2, sigmas[-1], x0, x0)
