"""A mixture of Gaussians in the plane: its score and its denoiser are known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianMixture:
    """Round Gaussians of one deviation: weights [K], means [K, 2]; all in float64."""

    weights: Tensor
    means: Tensor
    deviation: float

    @property
    def mean(self) -> Tensor:
        """Of the whole distribution [2]."""
        return self.weights @ self.means

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """∇ log p(x; σ) [..., 2] at x [..., 2] of the distribution with noise σ."""
        shares = self._terms(x, sigma).softmax(-1)
        return (shares @ self.means - x) / self._variance(x, sigma)

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """μ = E[x0 | x] = x + σ²·score, [..., 2] (Tweedie's formula; seed 001, eq. 5)."""
        level = torch.as_tensor(sigma).to(x)
        return x + level.reshape(-1, *[1] * (x.ndim - 1)) ** 2 * self.score(x, sigma)

    def log_density(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Log p(x; σ) [...] of x [..., 2], in nats."""
        return self._terms(x, sigma).logsumexp(-1) - math.log(2 * math.pi)

    def nearest(self, x: Tensor) -> Tensor:
        """The distance [...] of each x [..., 2] to the nearest mean."""
        return (x[..., None, :] - self.means.to(x)).norm(dim=-1).amin(-1)

    def _variance(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Of a component with noise σ, one number or [B], to broadcast with x [B, ...]."""
        level = torch.as_tensor(sigma).to(x)
        return self.deviation**2 + level.reshape(-1, *[1] * (x.ndim - 1)) ** 2

    def _terms(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Log of weight times density of each component [..., K], without the factor 1/2π."""
        variance = self._variance(x, sigma)
        distance = (x[..., None, :] - self.means).square().sum(-1)
        return self.weights.log() - distance / (2 * variance) - variance.log()


def normalised(weights: Tensor, means: Tensor, deviation: float) -> GaussianMixture:
    """The mixture moved and scaled to mean 0 and variance 1 (the mean of both coordinates')."""
    means = means - weights @ means
    own = (weights @ means.square()).mean()
    return GaussianMixture(weights, means * ((1 - deviation**2) / own).sqrt(), deviation)


MODES = normalised(
    torch.tensor([0.35, 0.25, 0.25, 0.15], dtype=torch.float64),
    torch.tensor([[-1.3, -0.5], [-0.2, 1.4], [1.5, 0.4], [0.5, -1.3]], dtype=torch.float64),
    0.15,
)
"""Four modes of unequal weight, far apart."""
