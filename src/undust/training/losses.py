"""Loss terms of the first stage."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def gradient_difference(x: Tensor, y: Tensor, scales: int) -> Tensor:
    """Mean absolute difference of the image gradients of x and y [B, 3, H, W], summed over scales.

    A blurred edge costs little in L1 but has the wrong gradient along its whole length, and the
    halved sizes make a misplaced shape cost as well: after the gradient difference loss
    (Mathieu, Couprie & LeCun 2016, who use one size). Needs no pretrained network.
    A scale smaller than 2 pixels is left out.
    """
    error = x - y
    total = error.new_zeros(())
    for _ in range(scales):
        if min(error.shape[-2:]) < 2:
            break
        total = total + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        error = F.avg_pool2d(error, 2)
    return total
