"""Perpendicular negatives: away from what the negative prompt has and the prompt has not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from undust.diffusion.guidance.base import (
    EvalState,
    Guidance,
    GuidanceRequest,
    Scale,
    checked_scale,
    equals,
)
from undust.diffusion.guidance.projected import along
from undust.diffusion.guidance.registry import GuidanceContext, guidance
from undust.diffusion.samplers.registry import Denoise
from undust.errors import UndustError


@guidance("perp-neg", "mix")
@dataclass(frozen=True, eq=False)
class Perpendicular(Guidance):
    """Negative prompt without its common part with the prompt (Armandpour et al. 2023).

    x0 = empty + scale·(p − weight·n⊥), p = positive − empty, n = negative − empty, n⊥ ⟂ p. Neutral
    at weight 0, where it is classifier-free guidance without a negative prompt, to the bit. Raises
    UndustError for a scale or a weight that is not finite.
    """

    positive: Denoise
    negative: Denoise
    empty: Denoise
    scale: Scale
    weight: float = 1.0

    def __post_init__(self) -> None:
        checked_scale(self.scale)
        if not math.isfinite(self.weight):
            raise UndustError(f"perp-neg: {self.weight} is not a finite weight")

    @classmethod
    def build(cls, context: GuidanceContext, *, weight: float = 1.0) -> Perpendicular:
        """For the prompt, the negative prompt and no prompt of a batch."""
        return cls(context.positive, context.negative, context.empty, context.scale, weight)

    def estimate(self, at: EvalState) -> GuidanceRequest:
        """All three; without a weight, and without a scale, as many as are left."""
        scale = at.scale(self.scale)
        if self.weight == 0:
            if equals(scale, 1):
                return (yield [self.positive])[0]
            positive, empty = yield [self.positive, self.empty]
            return empty + scale * (positive - empty)
        positive, negative, empty = yield [self.positive, self.negative, self.empty]
        towards, off = positive - empty, negative - empty
        return empty + scale * (towards - self.weight * (off - along(off, towards)))
