"""The quantiles of the beta distribution, without scipy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TERMS = 64  # of a series whose terms shrink at least as 2⁻ⁿ
HALVINGS = 80
AT_ONCE = 4  # a divisor of these, for
FEW = 1000  # shares: more are enough for large operations by themselves


def _lower_half(x: Tensor, a: float, b: float) -> Tensor:
    """The regularised incomplete beta function I_x(a, b) for x in [0, ½].

    I = x^a/B(a, b)·Σ (1 − b)(2 − b)…(n − b)/n!·xⁿ/(a + n) (NIST's library of functions, 8.17.7).
    """
    term, total = torch.ones_like(x), torch.zeros_like(x)
    for n in range(TERMS):
        total += term / (a + n)
        term.mul_(x).mul_(n + 1 - b).div_(n + 1)
    # A power's last bit depends on its place in a vector: each row is alone.
    power = torch.stack([row**a for row in x.flatten(0, -2)]).view_as(x) if x.dim() > 1 else x**a
    return power * total * math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))


def beta_quantile(share: Tensor, a: float, b: float) -> Tensor:
    """The x with I_x(a, b) = share, float64 like share in [0, 1]; for a and b in (0, 5]."""
    # Each half of [0, 1] is measured from its own end, so that no digits are lost near 1.
    half = _lower_half(share.new_tensor(0.5), a, b)
    below, above = share.clamp(max=half), (1 - share).clamp(max=1 - half)
    if a == b:
        below, above = _halve(torch.stack((below, above)), a, b)
    else:
        below, above = _halve(below, a, b), _halve(above, b, a)
    return torch.where(share <= half, below, 1 - above)


def _halve(share: Tensor, a: float, b: float) -> Tensor:
    """The root of I_x(a, b) = share in [0, ½]."""
    ends = torch.stack((torch.zeros_like(share), torch.full_like(share, 0.5)))
    at_once = AT_ONCE if share.numel() <= FEW else 1
    for _ in range(HALVINGS // at_once):
        # All ends that the next halvings can have, in order: few large operations.
        for _ in range(at_once):
            middles = (ends[:-1] + ends[1:]) / 2
            ends = torch.cat((torch.stack((ends[:-1], middles), 1).flatten(0, 1), ends[-1:]))
        less = _lower_half(ends[1:-1], a, b) < share
        low, width = torch.zeros_like(share, dtype=torch.int64)[None], 2**at_once
        while width := width // 2:
            low += width * less.gather(0, low + width - 1)
        ends = ends.gather(0, torch.cat((low, low + 1)))
    return ends[1]
