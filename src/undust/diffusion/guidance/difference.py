"""DifferenceGuidance from a worse estimate of the same thing: three papers, one formula."""

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
class DifferenceGuidance(Guidance):
    """x0 = guided + scale·(better − worse), where `worse` is `better` with a handicap.

    What the handicap is makes the method: self-attention in which every pixel sees itself alone
    (perturbed-attention guidance, Ahn et al. 2024), blurred queries (smoothed energy guidance, Hong
    2024), or a smaller or less trained network (autoguidance, Karras et al. 2024a, whose w is
    scale + 1 with guided = better). Neutral at scale 0. Raises UndustError for a scale that is not
    finite.
    """

    guided: Denoise
    better: Denoise
    worse: Denoise
    scale: Scale

    def __post_init__(self) -> None:
        checked_scale(self.scale)

    def estimate(self, at: EvalState) -> GuidanceRequest:
        """All three, or the guided one alone where nothing is added."""
        scale = at.scale(self.scale)
        if equals(scale, 0):
            return (yield [self.guided])[0]
        guided, better, worse = yield [self.guided, self.better, self.worse]
        return guided + scale * (better - worse)
