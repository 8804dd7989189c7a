"""Measures of pictures that several parts of an explanation use."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

PEAK = 2.0  # the range of values of pictures in [-1, 1]


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Of each two pictures [B, …], over all their values: [B]."""
    a, b = (each.flatten(1) - each.flatten(1).mean(1, keepdim=True) for each in (x, y))
    return F.cosine_similarity(a, b)


def decibels(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [B] of pictures [B, …] that are clipped to [-1, 1] first."""
    error = (x.clamp(-1, 1) - y.clamp(-1, 1)).double().square().flatten(1).mean(1)
    return 10 * (PEAK**2 / error).log10()


def edges(x: Tensor) -> Tensor:
    """The mean distance of neighbouring values of pictures [B, C, H, W], clipped to [-1, 1]: [B].

    It is the total variation, divided by the number of neighbours.
    """
    down, right = (x.clamp(-1, 1).diff(dim=side).abs().flatten(1).mean(1) for side in (2, 3))
    return (down + right) / 2


def root_mean_square(x: Tensor) -> Tensor:
    """The root mean square of each entry of x [B, …]: [B]."""
    return x.flatten(1).square().mean(1).sqrt()
