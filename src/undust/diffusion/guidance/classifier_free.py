"""Classifier-free guidance, with a negative prompt in the place of no prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from undust.diffusion.denoiser import Condition, Denoiser
from undust.errors import UndustError

C = TypeVar("C", bound=Condition)


@dataclass(frozen=True)
class ClassifierFree(Generic[C]):
    """x0 = negative + scale·(positive − negative) (Ho & Salimans 2022, eq. 6, their w + 1 = scale).

    The equation is written for ε; x0 is linear in ε at a given x, so it is the same for x0. Both
    conditions have one entry for each picture. Raises UndustError for a scale that is not finite.
    """

    denoise: Denoiser[C]
    positive: C
    negative: C
    scale: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise UndustError(f"guidance: {self.scale} is not a finite scale")
        if len(self.positive) != len(self.negative):
            raise UndustError(
                f"guidance: {len(self.positive)} conditions but {len(self.negative)} negative ones"
            )

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The guided estimate [B, …] of what is under x [B, …] at sigma [B]: one network call."""
        if self.scale == 1:  # nothing to push away from: exactly the conditional model
            return self.denoise(x, sigma, self.positive)
        both = self.positive.concat(self.negative)
        positive, negative = self.denoise(torch.cat([x, x]), sigma.repeat(2), both).chunk(2)
        return negative + self.scale * (positive - negative)
