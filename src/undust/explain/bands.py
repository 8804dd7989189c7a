"""Pictures divided into what is coarse and what is fine."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def bands(x: Tensor, cells: Sequence[int]) -> list[Tensor]:
    """Parts of x [B, C, H, W] that add up to it, from coarse to fine.

    cells: rising numbers n of a grid of n × n. The first part is the means of the first grid's
    cells, each next one what a finer grid's means add, the last what is left. Where each number
    divides the next one and the size, the parts are orthogonal: their squares add up too.
    """
    parts: list[Tensor] = []
    for count in cells:
        rest = x - sum(parts)
        parts.append(F.interpolate(F.adaptive_avg_pool2d(rest, count), x.shape[2:]))
    return [*parts, x - sum(parts)]
