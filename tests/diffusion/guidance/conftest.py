"""Denoisers of Gaussians, for which guidance has closed forms, and one that is all nonlinear.

All parts of a `World` answer through one network, which notes how many pictures each call brought.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from undust.diffusion.guidance import ConditionedDenoiser
from undust.diffusion.noise import normal

DEVIATION = 0.6  # of every Gaussian


@dataclass(frozen=True)
class Means:
    """A condition in earnest: the mean of what is asked for, [B, …]."""

    value: Tensor

    def __len__(self) -> int:
        return len(self.value)

    def concat(self, other: Means) -> Means:
        return Means(torch.cat([self.value, other.value]))


@dataclass
class World:
    """Pictures x [B, C, H, W] (or [B, D]) at sigma [B], and networks to ask about them."""

    x: Tensor
    sigma: Tensor
    bent: bool = False
    calls: list[int] = field(default_factory=list[int])

    def denoise(self, x: Tensor, sigma: Tensor, cond: Means, /) -> Tensor:
        """E[x0 | x] of N(mean, DEVIATION²) at x = x0 + σ·n; or, bent, something like a network."""
        self.calls.append(len(x))
        assert len(x) == len(sigma) == len(cond)
        level = sigma.reshape(-1, *[1] * (x.ndim - 1))
        if self.bent:
            return torch.tanh(x + cond.value) / (1 + level)
        kept = DEVIATION**2 / (DEVIATION**2 + level**2)
        return kept * x + (1 - kept) * cond.value

    def mean(self, seed: int) -> Tensor:
        return normal(seed, (0, 0, 0), self.x.shape[1:]).to(self.x)

    def asked(self, mean: Tensor) -> ConditionedDenoiser[Any]:
        """The network asked for a mean, the same for all pictures."""
        return ConditionedDenoiser(self.denoise, Means(mean.expand_as(self.x)))

    def branch(self, seed: int) -> ConditionedDenoiser[Any]:
        return self.asked(self.mean(seed))

    def exact(self, mean: Tensor) -> Tensor:
        """What a network would say that was asked for this mean."""
        return self.denoise(self.x, self.sigma, Means(mean.expand_as(self.x)))


@pytest.fixture
def world() -> World:
    return World(normal(0, (0, 0, 0), (3, 2, 4, 5)).double() * 2, torch.full((3,), 1.7).double())


@pytest.fixture(scope="session")
def bent_worlds() -> Callable[[], World]:
    """New ones on demand: hypothesis makes no new fixture for each of its examples."""
    x = normal(0, (0, 0, 0), (3, 2, 4, 5)) * 2
    return lambda: World(x, torch.full((3,), 1.7), bent=True)


@pytest.fixture
def bent(bent_worlds: Callable[[], World]) -> World:
    return bent_worlds()
