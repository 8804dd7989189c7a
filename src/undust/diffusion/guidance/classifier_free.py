"""Classifier-free guidance, with a negative prompt in the place of no prompt."""

from __future__ import annotations

from dataclasses import dataclass

from undust.diffusion.guidance.base import (
    EvalState,
    Guidance,
    GuidanceRequest,
    Scale,
    checked_scale,
    equals,
)
from undust.diffusion.samplers.registry import Denoise


@dataclass(frozen=True, eq=False)
class ClassifierFree(Guidance):
    """x0 = negative + scale·(positive − negative) (Ho & Salimans 2022, eq. 6, their w + 1 = scale).

    The equation is written for ε; x0 is linear in ε at a given x, so it is the same for x0. Neutral
    at scale 1. Raises UndustError for a scale that is not finite.
    """

    positive: Denoise
    negative: Denoise
    scale: Scale

    def __post_init__(self) -> None:
        checked_scale(self.scale)

    def estimate(self, at: EvalState) -> GuidanceRequest:
        """Both denoisers, or the positive one alone where there is nothing to push away from."""
        scale = at.scale(self.scale)
        if equals(scale, 1):
            return (yield [self.positive])[0]
        positive, negative = yield [self.positive, self.negative]
        return negative + scale * (positive - negative)
