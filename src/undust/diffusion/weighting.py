"""How much each noise level counts in training: γ(t) of seed 001, eq. 3.

A weighting multiplies the mean squared error between the network's output and `prediction.target`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from undust.diffusion.prediction import Prediction
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
def uniform(sigma: Tensor, _prediction: Prediction) -> Tensor:
    """Every noise level alike, in whatever the network predicts (Ho et al. 2020, eq. 14 for ε)."""
    return torch.ones_like(sigma)


@weighting("min-snr")
def min_snr(sigma: Tensor, prediction: Prediction) -> Tensor:
    """The error of x0 times min(SNR, 5), with SNR = 1/σ² (Hang et al. 2023, §3.4).

    An error e of the output is an error scale(σ)·e of x0, so the weight is min(SNR, 5)/SNR for ε
    and min(SNR, 5)/(SNR + 1) for v.
    """
    return (sigma**-2).clamp(max=GAMMA) * prediction.scale(sigma) ** 2
