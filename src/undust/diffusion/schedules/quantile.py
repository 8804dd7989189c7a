"""The quantiles of the beta distribution, without scipy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TERMS = 64  # of a series whose terms shrink at least as 2⁻ⁿ
HALVINGS = 80


def _lower_half(x: Tensor, a: float, b: float) -> Tensor:
    """The regularised incomplete beta function I_x(a, b) for x in [0, ½].

    I = x^a/B(a, b)·Σ (1 − b)(2 − b)…(n − b)/n!·xⁿ/(a + n) (NIST's library of functions, 8.17.7).
    """
    term, total = torch.ones_like(x), torch.zeros_like(x)
    for n in range(TERMS):
        total = total + term / (a + n)
        term = term * x * (n + 1 - b) / (n + 1)
    return x**a * total * math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))


def beta_quantile(share: Tensor, a: float, b: float) -> Tensor:
    """The x with I_x(a, b) = share, float64 like share in [0, 1]; for a and b in (0, 5]."""
    # Each half of [0, 1] is measured from its own end, so that no digits are lost near 1.
    half = _lower_half(share.new_tensor(0.5), a, b)
    below = _halve(share.clamp(max=half), a, b)
    above = _halve((1 - share).clamp(max=1 - half), b, a)
    return torch.where(share <= half, below, 1 - above)


def _halve(share: Tensor, a: float, b: float) -> Tensor:
    """The root of I_x(a, b) = share in [0, ½]."""
    low, high = torch.zeros_like(share), torch.full_like(share, 0.5)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        less = _lower_half(middle, a, b) < share
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    return high
