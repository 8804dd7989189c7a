"""Guidance in an interval of noise levels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from undust.diffusion.guidance.base import CLOSE, EvalState, Guidance, GuidanceRequest
from undust.diffusion.guidance.registry import GuidanceContext, Limits, guidance
from undust.diffusion.samplers.registry import Denoise
from undust.errors import UndustError


@guidance("interval", "around")
@dataclass(frozen=True, eq=False)
class Interval(Guidance):
    """No guidance but between two noise levels (Kynkäänniemi et al. 2024).

    `guided` for low < σ ≤ high, `plain` elsewhere. In a recipe it concerns the guidance scale and
    the guides before it. High up guidance takes away variety, far down it does nothing; outside, no
    call is made for it. Neutral from 0 to ∞. Raises UndustError unless 0 ≤ low < high.
    """

    guided: Denoise
    plain: Denoise
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise UndustError(
                f"interval: {self.low} … {self.high} is not valid; expected 0 ≤ low < high"
            )

    @classmethod
    def build(
        cls,
        context: GuidanceContext,
        *,
        low: Annotated[float, Limits(ge=0)] = 0.0,
        high: Annotated[float | None, Limits(gt=0)] = None,
    ) -> Interval:
        """Of the guidance so far, with the prompt alone elsewhere."""
        return cls(context.denoise, context.positive, low, math.inf if high is None else high)

    def estimate(self, at: EvalState) -> GuidanceRequest:
        """One of the two."""
        everywhere = self.low == 0 and self.high == math.inf
        inside = everywhere or self.low * (1 + CLOSE) < at.level <= self.high * (1 + CLOSE)
        return (yield [self.guided if inside else self.plain])[0]
