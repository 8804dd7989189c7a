"""Guidance rescale: the guided output gets the contrast of the unguided one back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from undust.diffusion.guidance.base import EvalState, Guidance, GuidanceRequest
from undust.diffusion.guidance.registry import GuidanceContext, Limits, guidance
from undust.diffusion.prediction import PREDICTIONS, Prediction
from undust.diffusion.samplers.registry import Denoise
from undust.errors import UndustError


@guidance("rescale", "around")
@dataclass(frozen=True, eq=False)
class Rescaled(Guidance):
    """The contrast of the unguided output (Lin et al. 2024, §3.4).

    The output times φ·std(positive)/std(guided) + 1 − φ, where share is φ. Standard deviations are
    those of each picture. They are not linear, so it matters in which output they are taken: the
    paper's is v, whatever the network predicts; ε, which diffusers takes for networks that predict
    it, gives another picture. Neutral at φ = 0. Raises UndustError for a φ outside 0 … 1.
    """

    guided: Denoise
    positive: Denoise
    share: float = 0.7  # φ
    output: Prediction = PREDICTIONS["v_prediction"]

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UndustError(f"rescale: {self.share} is outside 0 (nothing) … 1 (all of it)")

    @classmethod
    def build(
        cls,
        context: GuidanceContext,
        *,
        share: Annotated[float, Limits(ge=0, le=1)] = 0.7,
        output: str = "v_prediction",
    ) -> Rescaled:
        """Of the guidance so far; output: the name of a prediction."""
        return cls(context.denoise, context.positive, share, PREDICTIONS[output])

    @staticmethod
    def check(output: str = "v_prediction", **_settings: object) -> None:
        """Raises UndustError for an unknown output."""
        PREDICTIONS[output]

    def estimate(self, at: EvalState) -> GuidanceRequest:
        """Both, or the guided one alone at φ = 0."""
        if self.share == 0:
            return (yield [self.guided])[0]
        guided, positive = yield [self.guided, self.positive]
        scale = self.output.scale(at.sigma_like_x)
        skipped = self.output.skip(at.sigma_like_x) * at.x
        output = (guided - skipped) / scale
        own = _deviation(output)
        wanted = _deviation((positive - skipped) / scale)
        ratio = torch.where(own > 0, wanted / own, 1)
        return skipped + scale * (output * (self.share * ratio + 1 - self.share))


def _deviation(x: Tensor) -> Tensor:
    """The standard deviation of each picture of x [B, …], [B, 1, …]."""
    return x.std(tuple(range(1, x.ndim)), correction=0, keepdim=True)
