"""Loss weightings by noise level: γ(t) of seed 001, eq. 3.

A weighting multiplies the mean squared error between the network's output and `prediction.target`.
An error e of the output is an error scale(σ)·e of x0, so weights that papers state for x0 become
w(σ)·scale(σ)², for any prediction. An error of ε is σ times smaller than that of x0, and one of the
score in x = x0 + σ·n σ² times: γ of eq. 3 is γ/σ⁴ for x0. The score of x_t = α·x is that of x
divided by α.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from undust.diffusion.prediction import Prediction
from undust.diffusion.prediction import edm as edm_prediction
from undust.diffusion.process import VP, Process
from undust.diffusion.registry import Registry, check_setting
from undust.errors import UndustError

Weighting = Callable[[Tensor, Prediction], Tensor]
"""(σ [B], prediction) -> weight [B]."""

WEIGHTINGS: Registry[Callable[..., Weighting]] = Registry("weighting")
"""name -> function of the process that builds it; keyword-only parameters are its settings."""

B = TypeVar("B", bound=Callable[..., Weighting])


def weighting(name: str) -> Callable[[B], B]:
    """Registers a function that builds a weighting."""

    def register(build: B) -> B:
        WEIGHTINGS[name] = build
        return build

    return register


def uniform_weight(sigma: Tensor, _prediction: Prediction) -> Tensor:
    """Weight 1 for the error of the network's output (Ho et al. 2020, eq. 14 for ε)."""
    return torch.ones_like(sigma)


@weighting("uniform")
def uniform(_process: Process) -> Weighting:
    """Weight 1 for the error of the network's output (Ho et al. 2020, eq. 14 for ε)."""
    return uniform_weight


@weighting("snr")
def snr(_process: Process) -> Weighting:
    """Weight 1 for the error of ε: score matching, eq. 3, with γ = s² (Ho et al. 2020)."""
    return lambda sigma, prediction: sigma**-2 * prediction.scale(sigma) ** 2


@weighting("score-matching")
def score_matching(process: Process, *, power: float = 2.0) -> Weighting:
    """Score matching, eq. 3, with γ = s(t)^power, s being the noise's deviation in x_t.

    2 is "snr" (Song & Ermon 2019, section 4.2), 0 the error of the score itself.
    """

    def weight(sigma: Tensor, prediction: Prediction) -> Tensor:
        alpha = process.alpha(process.time(sigma)).to(sigma)
        return (alpha * sigma) ** (power - 2) * sigma**-2 * prediction.scale(sigma) ** 2

    return weight


@weighting("likelihood")
def likelihood(process: Process) -> Weighting:
    """Score matching, eq. 3, with γ = g²(t): a bound on the likelihood (Song et al. 2021a).

    For evenly drawn times: the bound is the integral over the process's time.
    """

    def weight(sigma: Tensor, prediction: Prediction) -> Tensor:
        time, level = process.time(sigma), sigma.double()
        rate = (process.g(time) / process.alpha(time) / level**2) ** 2
        return rate.to(sigma) * prediction.scale(sigma) ** 2

    return weight


@weighting("vlb")
def vlb(process: Process, *, elbo: float = 1.0, simple: float = 0.0) -> Weighting:
    """The variational bound: KL of each step's posterior (Ho et al. 2020, eq. 12), for `VP`.

    elbo, simple: of that weight of the error of ε, and of weight 1 for the output, as in Rombach et
    al.'s code (original_elbo_weight, l_simple_weight; the first step takes the second's weight).
    """
    if not isinstance(process, VP):
        raise UndustError("weighting vlb: it needs a discrete process, such as scaled-linear")
    left, betas = process.alphas_cumprod, process.betas
    before = torch.cat([left.new_ones(1), left[:-1]])
    posterior = betas * (1 - before) / (1 - left)
    weights = betas**2 / (2 * posterior * (1 - betas) * (1 - left))
    weights[0] = weights[1]

    def weight(sigma: Tensor, prediction: Prediction) -> Tensor:
        step = process.timestep(sigma).round().long()
        bound = (weights.to(sigma.device)[step] / sigma.double() ** 2).to(sigma)
        return elbo * bound * prediction.scale(sigma) ** 2 + simple

    return weight


@weighting("min-snr")
def min_snr(_process: Process, *, gamma: float = 5.0) -> Weighting:
    """The error of x0 times min(SNR, γ), with SNR = 1/σ² (Hang et al. 2023, §3.4).

    That is min(SNR, γ)/SNR for ε and min(SNR, γ)/(SNR + 1) for v.
    """
    check_setting("gamma", gamma, 0)
    return lambda sigma, prediction: (sigma**-2).clamp(max=gamma) * prediction.scale(sigma) ** 2


@weighting("soft-min-snr")
def soft_min_snr(_process: Process, *, gamma: float = 5.0) -> Weighting:
    """The error of x0 times 1/(σ² + 1/γ), a smooth min-snr (after Crowson et al. 2024)."""
    check_setting("gamma", gamma, 0)
    return lambda sigma, prediction: prediction.scale(sigma) ** 2 / (sigma**2 + 1 / gamma)


@weighting("p2")
def p2(_process: Process, *, gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """The error of ε divided by (k + SNR)^γ, with less weight on small noise (Choi et al. 2022)."""
    check_setting("k", k, 0)

    def weight(sigma: Tensor, prediction: Prediction) -> Tensor:
        scale, power = prediction.scale(sigma), gamma - 1
        return scale**2 / (1 + k * sigma**2) ** gamma * sigma ** (2 * power)

    return weight


@weighting("debiased")
def debiased(_process: Process) -> Weighting:
    """The error of ε divided by √SNR, with more weight on large noise (Yu et al. 2023)."""
    return lambda sigma, prediction: prediction.scale(sigma) ** 2 / sigma


@weighting("edm")
def edm(_process: Process, *, sigma_data: float = 0.5) -> Weighting:
    """Weight 1 for the error of F (Karras et al. 2022, table 1, λ(σ))."""
    check_setting("sigma_data", sigma_data, 0)
    whole = edm_prediction(sigma_data)
    return lambda sigma, prediction: (prediction.scale(sigma) / whole.scale(sigma)) ** 2


@weighting("velocity")
def velocity(_process: Process, *, lowest: float = 0.05) -> Weighting:
    """Weight 1 for the error of the flow's velocity n − x0, 1/τ² for x0, τ = σ/(1 + σ).

    lowest: of τ in that weight (Li & He 2025, algorithm 1).
    """
    check_setting("lowest", lowest, 0, 1)

    def weight(sigma: Tensor, prediction: Prediction) -> Tensor:
        return (prediction.scale(sigma) / (sigma / (1 + sigma)).clamp(min=lowest)) ** 2

    return weight
