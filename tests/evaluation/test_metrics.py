"""PSNR and SSIM against formulas, a direct computation and scikit-image's figures."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from undust.errors import UndustError
from undust.evaluation.metrics import psnr, ssim

Metric = Callable[[Tensor, Tensor, float], Tensor]


def waves(a: float, b: float, gain: float = 1.0, lift: float = 0.0) -> Tensor:
    """A picture [1, 3, 20, 24] of whole numbers in 0 … 255."""
    i, j = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    channels = [(127.5 + 100 * (a * i + b * j + c).double().sin()).round() for c in range(3)]
    return (gain * torch.stack(channels) + lift).round().clamp(0, 255)[None]


def directly(x: NDArray[np.float64], y: NDArray[np.float64], data_range: float) -> float:
    """Wang et al. 2004, eq. 13, window by window; x and y [C, H, W]."""
    place = np.arange(11) - 5
    weight = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values: list[float] = []
    for a, b in zip(x, y, strict=True):
        for top in range(a.shape[0] - 10):
            for left in range(a.shape[1] - 10):
                p, q = (z[top : top + 11, left : left + 11] for z in (a, b))
                mp, mq = (weight * p).sum(), (weight * q).sum()
                vp, vq = (weight * (p - mp) ** 2).sum(), (weight * (q - mq) ** 2).sum()
                cov = (weight * (p - mp) * (q - mq)).sum()
                values.append(
                    (2 * mp * mq + c1) * (2 * cov + c2) / (mp**2 + mq**2 + c1) / (vp + vq + c2)
                )
    return float(np.mean(values))


def test_figures_of_scikit_image():
    """peak_signal_noise_ratio and structural_similarity of scikit-image 0.26.0 say so.

    With gaussian_weights=True, sigma=1.5, use_sample_covariance=False, win_size=11,
    data_range=255, channel_axis=0, on float64.
    """
    x, y = waves(0.5, 0.3), waves(0.5, 0.35, gain=0.8, lift=20)
    assert psnr(x, y, 255).item() == pytest.approx(15.290389744746305, rel=1e-12)
    assert ssim(x, y, 255).item() == pytest.approx(0.759809971481138, rel=1e-9)


@pytest.mark.parametrize("data_range", [1.0, 2.0, 255.0])
def test_ssim_is_the_published_formula(data_range: float):
    x, y = torch.rand(2, 2, 3, 12, 14, generator=torch.Generator().manual_seed(0)) * data_range
    y = 0.5 * (x + y)
    expected = [
        directly(a.double().numpy(), b.double().numpy(), data_range)
        for a, b in zip(x, y, strict=True)
    ]
    assert ssim(x, y, data_range).tolist() == pytest.approx(expected, rel=1e-9)


def test_ssim_of_even_pictures_compares_brightness_alone():
    x, y, c1 = -0.5, 0.25, 0.02**2
    ones = torch.ones(1, 3, 11, 11)
    expected = (2 * x * y + c1) / (x**2 + y**2 + c1)
    assert ssim(x * ones, y * ones).item() == pytest.approx(expected, rel=1e-6)


def test_psnr_of_a_known_error():
    x = torch.zeros(2, 3, 4, 5)
    y = x + torch.tensor([0.02, 0.2])[:, None, None, None]
    assert psnr(x, y).tolist() == pytest.approx([40, 20], abs=1e-5)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_units_do_not_matter_when_the_range_says_them(metric: Metric):
    x, y = waves(0.5, 0.3), waves(0.4, 0.3)
    there = metric(x / 127.5, y / 127.5, 2)
    assert metric(x, y, 255).item() == pytest.approx(there.item(), rel=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_each_picture_of_a_batch_is_measured_alone(metric: Metric):
    x = torch.cat([waves(0.5, 0.3), waves(0.1, 0.9)])
    y = torch.cat([waves(0.4, 0.3), waves(0.1, 0.8)])
    alone = [metric(x[k : k + 1], y[k : k + 1], 255).item() for k in range(2)]
    assert metric(x, y, 255).tolist() == pytest.approx(alone, rel=1e-12)


def test_equal_pictures():
    x = waves(0.5, 0.3)
    assert psnr(x, x).item() == math.inf
    assert ssim(x, x, 255).item() == pytest.approx(1, abs=1e-12)


def test_ssim_needs_room_for_its_window():
    with pytest.raises(UndustError, match="at least 11x11 pixels, not 20x10"):
        ssim(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))
