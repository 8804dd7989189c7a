"""Guidance rescale: the guided output gets the contrast of the unguided one back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from undust.diffusion.guidance.base import Asking, Guidance, Moment
from undust.diffusion.prediction import PREDICTIONS, Prediction
from undust.errors import UndustError

if TYPE_CHECKING:
    from undust.diffusion.samplers.registry import Denoise


@dataclass(frozen=True, eq=False)
class Rescaled(Guidance):
    """The output times φ·std(positive)/std(guided) + 1 − φ (Lin et al. 2024, §3.4).

    Standard deviations are those of each picture. They are not linear, so it matters in which
    output they are taken: the paper's is v, whatever the network predicts; ε, which diffusers takes
    for networks that predict it, gives another picture. Neutral at φ = 0. Raises UndustError for a
    φ outside 0 … 1.
    """

    guided: Denoise
    positive: Denoise
    share: float = 0.7  # φ
    output: Prediction = PREDICTIONS["v_prediction"]

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UndustError(f"rescale: {self.share} is outside 0 (nothing) … 1 (all of it)")

    def ask(self, now: Moment) -> Asking:
        """Both, or the guided one alone at φ = 0."""
        if self.share == 0:
            return (yield [self.guided])[0]
        guided, positive = yield [self.guided, self.positive]
        scale = self.output.scale(now.sigma_like_x)
        skipped = self.output.skip(now.sigma_like_x) * now.x
        output = (guided - skipped) / scale
        own = _deviation(output)
        wanted = _deviation((positive - skipped) / scale)
        ratio = torch.where(own > 0, wanted / own, 1)
        return skipped + scale * (output * (self.share * ratio + 1 - self.share))


def _deviation(x: Tensor) -> Tensor:
    """The standard deviation of each picture of x [B, …], [B, 1, …]."""
    return x.std(tuple(range(1, x.ndim)), correction=0, keepdim=True)
