"""The edge loss on pictures for which it is known in closed form."""

from __future__ import annotations

import pytest
import torch

from undust.training.losses import gradient_difference


def ramp(slope: float) -> torch.Tensor:
    """A picture [1, 3, 16, 16] that rises by `slope` from column to column."""
    return (slope * torch.arange(16.0)).expand(1, 3, 16, 16)


@pytest.mark.parametrize("scales", [1, 2, 3, 4])
def test_a_ramp_costs_its_slope_which_doubles_with_every_halving(scales: int):
    """Halved, the columns lie two old columns apart: slope·(1 + 2 + 4 + …)."""
    expected = 0.25 * (2**scales - 1)
    assert gradient_difference(ramp(0.5), ramp(0.25), scales).item() == pytest.approx(expected)
    turned = gradient_difference(ramp(0.5).mT, ramp(0.25).mT, scales).item()
    assert turned == pytest.approx(expected)


def test_brightness_alone_costs_nothing():
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert gradient_difference(x, x, 3).item() == 0
    assert gradient_difference(x, x + 0.3, 3).item() == pytest.approx(0, abs=1e-6)


def test_one_step_edge_costs_one_column_of_gradients():
    """A wrong step of height 1 between two of 16 columns: one of 15 horizontal gradients."""
    x = torch.zeros(1, 3, 16, 16)
    y = x.clone()
    y[..., 8:] = 1
    assert gradient_difference(x, y, 1).item() == pytest.approx(1 / 15)


def test_scales_below_two_pixels_are_left_out():
    x, y = torch.zeros(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    assert gradient_difference(x, y, 2).item() == gradient_difference(x, y, 20).item()
    assert gradient_difference(x[..., :1], y[..., :1], 3).item() == 0
