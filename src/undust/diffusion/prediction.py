"""Predictions: the meaning of a network's output.

Each is x0 = skip(σ)·x + scale(σ)·output (c_skip and c_out in Karras et al. 2022, eq. 7), so they
differ in two coefficients and in the training target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from undust.diffusion.process import EDM, Process
from undust.diffusion.registry import Registry
from undust.errors import UndustError


@dataclass(frozen=True)
class Prediction:
    """One kind of prediction; σ broadcasts against x: [B,1,1,1] with [B,C,H,W]."""

    skip: Callable[[Tensor], Tensor]
    scale: Callable[[Tensor], Tensor]
    target: Callable[[Tensor, Tensor, Tensor], Tensor]
    """target(x0, noise, σ): the training target for x = x0 + σ·noise."""

    def to_x0(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """The clean picture x0 [B, …] from the output for x = x0 + σ·n [B, …]."""
        return self.skip(sigma) * x + self.scale(sigma) * output


PREDICTIONS: Registry[Prediction] = Registry("prediction")
# The noise itself (Ho et al. 2020, eq. 14).
PREDICTIONS["epsilon"] = Prediction(
    skip=torch.ones_like,
    scale=torch.neg,
    target=lambda _x0, noise, _sigma: noise,
)
# The clean picture itself.
PREDICTIONS["sample"] = Prediction(
    skip=torch.zeros_like,
    scale=torch.ones_like,
    target=lambda x0, _noise, _sigma: x0,
)
# v = α·n − β·x0 with α = 1/√(1+σ²) and β = σ/√(1+σ²) (Salimans & Ho 2022, appendix D).
PREDICTIONS["v_prediction"] = Prediction(
    skip=lambda sigma: 1 / (1 + sigma**2),
    scale=lambda sigma: -sigma * (1 + sigma**2).rsqrt(),
    target=lambda x0, noise, sigma: (noise - sigma * x0) * (1 + sigma**2).rsqrt(),
)
# The velocity n − x0 of x_t = (1 − τ)·x0 + τ·n, σ = τ/(1 − τ) (Liu et al. 2023, eq. 1).
PREDICTIONS["flow"] = Prediction(
    skip=lambda sigma: 1 / (1 + sigma),
    scale=lambda sigma: -sigma / (1 + sigma),
    target=lambda x0, noise, _sigma: noise - x0,
)
# The score of x = x0 + σ·n (seed 001, eq. 5): α times that of x_t = α·x. The target is the score
# given x0, whose mean is the score (Vincent 2011).
PREDICTIONS["score"] = Prediction(
    skip=torch.ones_like,
    scale=torch.square,
    target=lambda _x0, noise, sigma: -noise / sigma,
)


def edm(sigma_data: float = 0.5) -> Prediction:
    """F, of variance 1 like its input and with the smallest scale (Karras et al. 2022, eq. 7).

    For pictures of deviation sigma_data; with sigma_data 1 it is −v.
    """
    variance = sigma_data**2
    return Prediction(
        skip=lambda sigma: variance / (sigma**2 + variance),
        scale=lambda sigma: sigma * sigma_data * (sigma**2 + variance).rsqrt(),
        target=lambda x0, noise, sigma: (
            (sigma * x0 / sigma_data - sigma_data * noise) * (sigma**2 + variance).rsqrt()
        ),
    )


PREDICTIONS["edm"] = edm()


def _negative(prediction: Prediction) -> Prediction:
    return Prediction(
        skip=prediction.skip,
        scale=lambda sigma: -prediction.scale(sigma),
        target=lambda x0, noise, sigma: -prediction.target(x0, noise, sigma),
    )


def prediction_on(process: Process, name: str) -> Prediction:
    """The prediction of that name for networks of this process.

    F and v = −F depend on the deviation of the pictures: 1, or sigma_data of EDM's process. Raises
    UndustError for an unknown name, and for ε and the score of a process that ends in pure noise,
    where they do not determine x0 (Lin et al. 2024, §3.2).
    """
    prediction = PREDICTIONS[name]
    if process.ends_in_noise and name in ("epsilon", "score"):
        raise UndustError(
            f"prediction: {name} does not work for a process that ends in pure noise (zero "
            "terminal SNR); v_prediction, sample and flow do"
        )
    if isinstance(process, EDM):
        whole = edm(process.sigma_data)
        return {"edm": whole, "v_prediction": _negative(whole)}.get(name, prediction)
    return prediction
