"""Dynamic thresholding: what guidance pushed out of range is pulled in again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from undust.diffusion.guidance.base import EvalState, Guidance, GuidanceRequest
from undust.diffusion.guidance.registry import GuidanceContext, Limits, guidance
from undust.diffusion.samplers.registry import Denoise
from undust.errors import UndustError


@guidance("threshold", "around")
@dataclass(frozen=True, eq=False)
class DynamicThreshold(Guidance):
    """Values out of range pulled in again: dynamic thresholding (Saharia et al. 2022).

    x0 is clipped to ±s and multiplied by limit/s, where s = max(limit, percentile of |x0|) for each
    picture (Imagen, §2.3). The paper's limit is 1, for pixels in
    [−1, 1]; latents of unit variance reach 3 and more without any guidance. Neutral without a limit
    (∞). Raises UndustError for a percentile outside 0 … 1 or a limit that is not above 0.
    """

    guided: Denoise
    percentile: float = 0.995
    limit: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise UndustError(f"threshold: the percentile {self.percentile} is outside 0 … 1")
        if not self.limit > 0:
            raise UndustError(f"threshold: the limit {self.limit} has to be above 0")

    @classmethod
    def build(
        cls,
        context: GuidanceContext,
        *,
        percentile: Annotated[float, Limits(gt=0, le=1)] = 0.995,
        limit: Annotated[float, Limits(gt=0)] = 3.0,
    ) -> DynamicThreshold:
        """Of the guidance so far."""
        return cls(context.denoise, percentile, limit)

    def estimate(self, at: EvalState) -> GuidanceRequest:
        """The one it corrects."""
        del at
        (guided,) = yield [self.guided]
        if self.limit == math.inf:
            return guided
        reach = guided.abs().flatten(1).quantile(self.percentile, dim=1).clamp(min=self.limit)
        reach = reach.reshape(-1, *[1] * (guided.ndim - 1))
        return guided.clamp(-reach, reach) * (self.limit / reach)
