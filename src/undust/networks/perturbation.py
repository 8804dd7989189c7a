"""Two ways to weaken self-attention, for guidance away from what a weaker network paints."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from undust.errors import UndustError
from undust.networks.attention import attend


@dataclass(frozen=True)
class IdentityMap:
    """Every pixel sees only itself: the attention map is the identity (PAG, Ahn et al. 2024)."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, heads: int, shape: tuple[int, int]
    ) -> Tensor:
        """[B,N,C] → [B,N,C]: the values as they are."""
        del q, k, heads, shape
        return v


@dataclass(frozen=True)
class BlurredQueries:
    """Neighbouring pixels look for nearly the same (SEG, Hong 2024).

    deviation: of the Gaussian, in pixels of the layer; ∞ makes all queries their mean. The edges
    are mirrored, and the Gaussian ends 3 deviations from its middle, or half a picture.
    Raises UndustError unless the deviation is above 0.
    """

    deviation: float = math.inf

    def __post_init__(self) -> None:
        if not self.deviation > 0:
            raise UndustError(f"seg: a blur of {self.deviation} is none; it has to be above 0")

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, heads: int, shape: tuple[int, int]
    ) -> Tensor:
        """Queries, keys and values [B,H·W,C] of pictures of shape (H, W) → [B,H·W,C]."""
        rows, columns = (_blur(side, self.deviation).to(q) for side in shape)
        grid = q.unflatten(1, shape)
        blurred = torch.einsum("ih,jw,bhwc->bijc", rows, columns, grid).flatten(1, 2)
        return attend(blurred, k, v, heads=heads)


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
