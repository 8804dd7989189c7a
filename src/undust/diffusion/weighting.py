"""Loss weightings by noise level: γ(t) of seed 001, eq. 3.

A weighting multiplies the mean squared error between the network's output and `prediction.target`.
An error e of the output is an error scale(σ)·e of x0, so weights that papers state for x0 become
w(σ)·scale(σ)², for any prediction. An error of ε is σ times smaller than that of x0, and one of the
score in x = x0 + σ·n σ² times: γ of eq. 3 is γ/σ⁴ for x0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from undust.diffusion.prediction import PREDICTIONS, Prediction
from undust.diffusion.registry import Registry

Weighting = Callable[[Tensor, Prediction], Tensor]

WEIGHTINGS: Registry[Weighting] = Registry("weighting")
"""name -> (σ [B], prediction) -> weight [B]."""

GAMMA = 5.0  # min-SNR's ceiling, the value of Hang et al. 2023


def weighting(name: str) -> Callable[[Weighting], Weighting]:
    """Registers a weighting."""

    def register(weight: Weighting) -> Weighting:
        WEIGHTINGS[name] = weight
        return weight

    return register


@weighting("uniform")
def uniform_weight(sigma: Tensor, _prediction: Prediction) -> Tensor:
    """Weight 1 for the error of the network's output (Ho et al. 2020, eq. 14 for ε)."""
    return torch.ones_like(sigma)


@weighting("snr")
def snr(sigma: Tensor, prediction: Prediction) -> Tensor:
    """Weight 1 for the error of ε: score matching, eq. 3, with γ = σ² (Ho et al. 2020)."""
    return sigma**-2 * prediction.scale(sigma) ** 2


@weighting("min-snr")
def min_snr(sigma: Tensor, prediction: Prediction) -> Tensor:
    """The error of x0 times min(SNR, 5), with SNR = 1/σ² (Hang et al. 2023, §3.4).

    That is min(SNR, 5)/SNR for ε and min(SNR, 5)/(SNR + 1) for v.
    """
    return (sigma**-2).clamp(max=GAMMA) * prediction.scale(sigma) ** 2


@weighting("soft-min-snr")
def soft_min_snr(sigma: Tensor, prediction: Prediction) -> Tensor:
    """The error of x0 times 1/(σ² + 1/5), a smooth min-snr (after Crowson et al. 2024)."""
    return prediction.scale(sigma) ** 2 / (sigma**2 + 1 / GAMMA)


@weighting("p2")
def p2(sigma: Tensor, prediction: Prediction) -> Tensor:
    """The error of ε divided by 1 + SNR, with less weight on small noise (Choi et al. 2022)."""
    return prediction.scale(sigma) ** 2 / (1 + sigma**2)


@weighting("debiased")
def debiased(sigma: Tensor, prediction: Prediction) -> Tensor:
    """The error of ε divided by √SNR, with more weight on large noise (Yu et al. 2023)."""
    return prediction.scale(sigma) ** 2 / sigma


@weighting("edm")
def edm(sigma: Tensor, prediction: Prediction) -> Tensor:
    """Weight 1 for the error of F with σ_data = ½ (Karras et al. 2022, table 1, λ(σ))."""
    return (prediction.scale(sigma) / PREDICTIONS["edm"].scale(sigma)) ** 2


def lognormal(uniform: Tensor, mean: float = -1.2, deviation: float = 1.2) -> Tensor:
    """Training noise levels with a normal log σ (Karras et al. 2022, table 1, training).

    uniform: numbers in (0, 1); σ like it. In rectified flow's τ = σ/(1 + σ) the same is the
    logit-normal density, since logit τ = log σ (Esser et al. 2024, eq. 19: mean 0, deviation 1).
    """
    return (mean + deviation * torch.special.ndtri(uniform)).exp()
