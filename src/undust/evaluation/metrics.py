"""Metrics of the difference between pictures: PSNR and SSIM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from undust.errors import UndustError

WINDOW, SIGMA = 11, 1.5  # pixels: the window of Wang et al. 2004


def psnr(x: Tensor, y: Tensor, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of each pair [B, C, H, W] in decibels [B]; infinite if equal.

    data_range: the range of values, 2 for [-1, 1], 255 for bytes.
    """
    error = (x.double() - y.double()).square().mean((1, 2, 3))
    return 10 * (data_range**2 / error).log10()


def ssim(x: Tensor, y: Tensor, data_range: float = 2.0) -> Tensor:
    """Structural similarity of each pair [B, C, H, W], a mean over channels and windows [B].

    Wang et al. 2004, eq. 13 with K = (0.01, 0.03), over all 11×11 windows inside the picture;
    data_range: as for `psnr`. Raises UndustError for smaller pictures.
    """
    if min(x.shape[-2:]) < WINDOW:
        size = "x".join(str(side) for side in reversed(x.shape[-2:]))
        raise UndustError(f"SSIM needs pictures of at least {WINDOW}x{WINDOW} pixels, not {size}")
    x, y = x.double(), y.double()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_x, mean_y = smooth(x), smooth(y)
    variances = smooth(x * x) - mean_x**2 + smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    brightness = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return (brightness * structure).mean((1, 2, 3))


def smooth(x: Tensor) -> Tensor:
    """The Gaussian mean over each whole 11×11 window: [B, C, H, W] → [B, C, H − 10, W − 10]."""
    place = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weight = (-0.5 * (place / SIGMA) ** 2).exp()
    weight = weight / weight.sum()
    batch, channels = x.shape[:2]
    flat = x.flatten(0, 1)[:, None]  # each channel separately
    flat = F.conv2d(F.conv2d(flat, weight[None, None, None]), weight[None, None, :, None])
    return flat.reshape(batch, channels, *flat.shape[-2:])
