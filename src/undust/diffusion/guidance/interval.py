"""Guidance in an interval of noise levels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from undust.diffusion.guidance.base import CLOSE, Asking, Guidance, Moment
from undust.errors import UndustError

if TYPE_CHECKING:
    from undust.diffusion.samplers.registry import Denoise


@dataclass(frozen=True, eq=False)
class Interval(Guidance):
    """`guided` for low < σ ≤ high, `plain` elsewhere (Kynkäänniemi et al. 2024).

    High up guidance takes away variety, far down it does nothing; outside, no call is made for it.
    Neutral from 0 to ∞. Raises UndustError unless 0 ≤ low < high.
    """

    guided: Denoise
    plain: Denoise
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise UndustError(
                f"interval: {self.low} … {self.high} is none; 0 ≤ low < high has to be"
            )

    def ask(self, now: Moment) -> Asking:
        """One of the two."""
        everywhere = self.low == 0 and self.high == math.inf
        inside = everywhere or self.low * (1 + CLOSE) < now.level <= self.high * (1 + CLOSE)
        return (yield [self.guided if inside else self.plain])[0]
