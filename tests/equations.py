"""Seed 001's six equations, each as one function of a process.

Here x is x_t = α(t)·x0 + s(t)·n, in the process's own coordinate and time; everywhere else in this
package it is x_t/α = x0 + σ·n, in which all six reduce to the sixth. Times are scalars or, for each
picture, [B, 1, …]. ∇log q is the score of x_t at that time, of x's shape.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from undust.diffusion.process import Process


def forward_sde(process: Process, x: Tensor, time: Tensor | float) -> tuple[Tensor, Tensor]:
    """(1) dx = f(t)·x dt + g(t) dw, from picture to noise; returns (drift, diffusion)."""
    return process.f(time) * x, process.g(time)


def reverse_sde(
    process: Process, x: Tensor, time: Tensor | float, score: Tensor
) -> tuple[Tensor, Tensor]:
    """(1) in reverse: dx = [f(t)·x − g²·∇log q]dt + g dw̄, as time falls; (drift, diffusion).

    Of the same distribution at every time as (1) (Anderson 1982; Song et al. 2021b, eq. 6).
    """
    drift, diffusion = forward_sde(process, x, time)
    return drift - diffusion**2 * score, diffusion


def probability_flow(process: Process, x: Tensor, time: Tensor | float, score: Tensor) -> Tensor:
    """(2) dx = [f(t)·x − ½g²·∇log q]dt: the same distributions without noise; returns dx/dt.

    It holds in both directions of time (Song et al. 2021b, eq. 13).
    """
    drift, diffusion = forward_sde(process, x, time)
    return drift - diffusion**2 / 2 * score


def score_matching(gamma: Tensor, predicted: Tensor, score: Tensor) -> Tensor:
    """(3) γ(t)·‖S(x, t) − ∇log q‖²: the score matching loss [B].

    gamma: [B]. With ∇log q(x | x0) = −n/s in place of the unknown ∇log q the loss has the same
    gradient (Vincent 2011). `weighting.py` has the weights for other predictions.
    """
    return gamma * (predicted - score).square().flatten(1).sum(1)


def network_flow(
    process: Process,
    x: Tensor,
    time: Tensor | float,
    network: Callable[[Tensor, Tensor | float], Tensor],
) -> Tensor:
    """(4) dx = [f(t)·x − ½g²·S(x, t)]dt: eq. 2 with a network's score."""
    return probability_flow(process, x, time, network(x, time))


def denoiser_score(process: Process, x: Tensor, time: Tensor | float, mean: Tensor) -> Tensor:
    """∇log q = (α·μ − x)/s², where μ = E[x0 | x] is the denoiser's estimate (Tweedie's formula).

    The seed's (μ − x)/σ² is this for α = 1, where s = σ. With another α it is the score of x/α.
    """
    return (process.alpha(time) * mean - x) / process.std(time) ** 2


def denoiser_flow(process: Process, x: Tensor, time: Tensor | float, mean: Tensor) -> Tensor:
    """(5) dx = [f(t)·x − ½g²·(α·μ − x)/s²]dt: eq. 4 with the score of a denoiser."""
    return probability_flow(process, x, time, denoiser_score(process, x, time, mean))


def exploding_flow(x: Tensor, sigma: Tensor | float, mean: Tensor) -> Tensor:
    """(6) dx = (x − μ)/σ dσ: eq. 5 for α = 1, with σ for time; returns dx/dσ.

    It holds for x_t/α of any process, and is the equation that every sampler solves.
    """
    return (x - mean) / sigma
