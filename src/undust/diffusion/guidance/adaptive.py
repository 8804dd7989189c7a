"""Adaptive guidance: no guidance from where it hardly changes the estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch.nn import functional as F

from undust.diffusion.guidance.base import EvalState, Guidance, GuidanceRequest, Scale, equals
from undust.diffusion.guidance.registry import GuidanceContext, Limits, guidance
from undust.diffusion.samplers.registry import Denoise
from undust.errors import UndustError


@guidance("adaptive", "around")
@dataclass(frozen=True, eq=False)
class AdaptiveGuidance(Guidance):
    """Guidance until prompt and negative prompt agree (Castillo et al. 2023).

    From the call after the one in which the cosine similarity of `positive` and `negative` is above
    the threshold, a picture gets `positive` alone. When all pictures of the batch do, no call is
    made for the rest. In a recipe it concerns the guidance scale and the guides before it.

    The similarity is that of the estimates of x0, which rises along the run. That of the noise,
    which the paper has, begins near 1 in these coordinates, because at high σ nearly all of x is
    noise. Neutral at threshold 1. What is decided is kept by a `GuidedRun`. Raises UndustError for
    a threshold outside -1 … 1.
    """

    guided: Denoise
    positive: Denoise
    negative: Denoise
    scale: Scale
    threshold: float = 0.99

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise UndustError(f"adaptive: {self.threshold} is outside -1 … 1 (always guided)")

    @classmethod
    def build(
        cls, context: GuidanceContext, *, threshold: Annotated[float, Limits(ge=-1, le=1)] = 0.99
    ) -> AdaptiveGuidance:
        """Of the guidance so far, with the prompt alone from then on."""
        return cls(context.denoise, context.positive, context.negative, context.scale, threshold)

    def estimate(self, at: EvalState) -> GuidanceRequest:
        """All three, or the one that is left."""
        if self.threshold == 1 or equals(at.scale(self.scale), 1):
            return (yield [self.guided])[0]
        done = at.remember(self, lambda before: before + torch.zeros(len(at.x)))
        if done.all():
            return (yield [self.positive])[0]
        guided, positive, negative = yield [self.guided, self.positive, self.negative]
        similar = F.cosine_similarity(positive.flatten(1), negative.flatten(1))
        agree = (similar > self.threshold).to(done)
        at.remember(self, lambda before: torch.maximum(agree, torch.as_tensor(before)))
        unguided = done.bool().reshape(-1, *[1] * (at.x.ndim - 1)).to(at.x.device)
        return torch.where(unguided, positive, guided)
