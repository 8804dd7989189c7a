"""Dynamic thresholding: what guidance pushed out of range is pulled in again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from undust.diffusion.guidance.base import Asking, Guidance, Moment
from undust.errors import UndustError

if TYPE_CHECKING:
    from undust.diffusion.samplers.registry import Denoise


@dataclass(frozen=True, eq=False)
class DynamicThreshold(Guidance):
    """x0 clipped to ±s and multiplied by limit/s, where s = max(limit, percentile of |x0|).

    Saharia et al. 2022 (Imagen), §2.3, for each picture. The paper's limit is 1, for pixels in
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

    def ask(self, now: Moment) -> Asking:
        """The one it corrects."""
        del now
        (guided,) = yield [self.guided]
        if self.limit == math.inf:
            return guided
        reach = guided.abs().flatten(1).quantile(self.percentile, dim=1).clamp(min=self.limit)
        reach = reach.reshape(-1, *[1] * (guided.ndim - 1))
        return guided.clamp(-reach, reach) * (self.limit / reach)
