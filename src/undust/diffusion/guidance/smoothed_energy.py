"""Smoothed energy guidance: away from self-attention with blurred queries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from undust.diffusion.guidance.difference import DifferenceGuidance
from undust.diffusion.guidance.registry import GuidanceContext, Limits, guidance
from undust.errors import UndustError


@dataclass(frozen=True)
class BlurredQueries:
    """Queries blurred over the picture: neighbouring pixels look for nearly the same.

    deviation: of the Gaussian, in pixels of the layer; ∞ makes all queries their mean. The edges
    are mirrored, and the Gaussian ends 3 deviations from its middle, or half a picture.
    Raises UndustError unless the deviation is above 0.
    """

    deviation: float = math.inf

    def __post_init__(self) -> None:
        if not self.deviation > 0:
            raise UndustError(f"seg: the blur has to be above 0, not {self.deviation}")

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
        shape: tuple[int, int],
    ) -> Tensor:
        """Queries, keys and values [B, H·W, C] of pictures of shape (H, W) → [B, H·W, C]."""
        rows, columns = (_blur(side, self.deviation).to(q) for side in shape)
        grid = q.unflatten(1, shape)
        blurred = torch.einsum("ih,jw,bhwc->bijc", rows, columns, grid).flatten(1, 2)
        return attend(blurred, k, v)


@guidance("seg", "around")
class SmoothedEnergy(DifferenceGuidance):
    """Away from self-attention with blurred queries: smoothed energy (Hong 2024)."""

    @classmethod
    def build(
        cls,
        context: GuidanceContext,
        *,
        scale: float = 3.0,
        blur: Annotated[float | None, Limits(gt=0)] = None,
    ) -> SmoothedEnergy:
        """blur: the deviation in pixels of the layer, infinite if None."""
        worse = context.perturbed(BlurredQueries(math.inf if blur is None else blur))
        return cls(context.denoise, context.positive, worse, scale)


def _blur(side: int, deviation: float) -> Tensor:
    """The matrix [side, side] that blurs a line of that many pixels."""
    if deviation == math.inf:
        return torch.full((side, side), 1 / side)
    radius = min(math.ceil(6 * deviation) // 2, side // 2)
    offset = torch.arange(-radius, radius + 1)
    weight = (-0.5 * (offset / deviation) ** 2).exp()
    place = (torch.arange(side)[:, None] + offset).abs()  # mirrored at the first pixel …
    place = side - 1 - (side - 1 - place).abs()  # … and at the last
    matrix = torch.zeros(side, side)
    return matrix.scatter_add_(1, place, (weight / weight.sum()).expand(side, -1).contiguous())
