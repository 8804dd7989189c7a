"""Bands add up to the picture, and are orthogonal where the grids are nested."""

from __future__ import annotations

import pytest
import torch

from undust.explain.bands import bands


def test_they_add_up():
    x = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.stack(bands(x, (1, 3, 5))).sum(0), x)


def test_their_squares_add_up():
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    parts = bands(x, (1, 4, 8))
    assert sum(part.square().sum().item() for part in parts) == pytest.approx(x.square().sum())


def test_the_first_is_the_mean_of_each_cell():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    cells = torch.tensor([[2.5, 4.5], [10.5, 12.5]])
    expected = cells.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(bands(x, (2,))[0][0, 0], expected)
