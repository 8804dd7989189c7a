"""Distributions with a closed-form denoiser, as references for samplers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from undust.diffusion.samplers.registry import Denoise


@dataclass(frozen=True)
class Mixture:
    """Isotropic Gaussians in D dimensions: weights [K], means [K, D], deviations [K]; float64."""

    weights: Tensor
    means: Tensor
    deviations: Tensor

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x] for x [B, D] and σ [B]: the components' posterior means, by their posterior."""
        # Σ p·(m + d²/s·(x − m)); components come first, as sums over a last axis of two are slow.
        spread = self._spread(sigma)
        posterior = self._terms(x, spread).softmax(0)
        share = posterior * self.deviations[:, None] ** 2 / spread
        return (posterior - share).T @ self.means + share.sum(0)[:, None] * x

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Log q(x) [B] in nats of the distribution with noise σ [B]; its gradient is the score."""
        constant = x.shape[1] / 2 * math.log(2 * math.pi)
        return self._terms(x, self._spread(sigma)).logsumexp(0) - constant

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean [D] and covariance [D, D] of the clean distribution."""
        mean = self.weights @ self.means
        away = self.means - mean
        own = (self.weights * self.deviations**2).sum() * torch.eye(len(mean)).to(mean)
        return mean, own + away.T @ (self.weights[:, None] * away)

    def _spread(self, sigma: Tensor) -> Tensor:
        return self.deviations[:, None] ** 2 + sigma**2  # [K, B]

    def _terms(self, x: Tensor, spread: Tensor) -> Tensor:
        """Log of weight times density of each component [K, B], without the factor (2π)^(-D/2)."""
        distance = (x - self.means[:, None]).square().sum(-1)
        scaled = distance / (2 * spread) + x.shape[1] / 2 * spread.log()
        return self.weights.log()[:, None] - scaled


def flow(denoise: Denoise, x: Tensor, top: float, bottom: float, steps: int) -> Tensor:
    """The probability flow from x [B, …] at σ = top to bottom, by classical Runge-Kutta steps.

    In u = log σ it is dx/du = x − E[x0 | x]; the method is of fourth order.
    """

    def slope(x: Tensor, u: float) -> Tensor:
        return x - denoise(x, torch.full((len(x),), math.exp(u), dtype=x.dtype))

    u, h = math.log(top), math.log(bottom / top) / steps
    for _ in range(steps):
        a = slope(x, u)
        b = slope(x + h / 2 * a, u + h / 2)
        c = slope(x + h / 2 * b, u + h / 2)
        d = slope(x + h * c, u + h)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
        u += h
    return x
