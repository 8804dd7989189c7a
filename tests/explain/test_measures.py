"""Measures of pictures, by hand."""

from __future__ import annotations

import pytest
import torch

from undust.evaluation import metrics
from undust.explain.measures import (
    correlation,
    decibels,
    edges,
    root_mean_square,
)

X = torch.rand(3, 3, 8, 8) * 2 - 1


def test_decibels_are_those_of_the_evaluation():
    other = (X + 0.1).clamp(-1, 1)
    assert torch.allclose(decibels(X, other), metrics.psnr(X, other))
    assert torch.equal(decibels(3 * X, X), decibels((3 * X).clamp(-1, 1), X))


def test_correlation_knows_neither_mean_nor_scale():
    assert torch.allclose(correlation(X, 2 * X + 1), torch.ones(3))
    assert torch.allclose(correlation(X, -X), -torch.ones(3))


def test_edges_of_stripes():
    stripes = torch.ones(1, 3, 8, 8)
    stripes[..., ::2] = -1
    assert edges(stripes).item() == 1  # 2 in each row, 0 in each column
    assert edges(torch.zeros(2, 3, 8, 8)).tolist() == [0, 0]


def test_root_mean_square():
    assert root_mean_square(torch.tensor([[3.0, -3.0], [0, 2]])).tolist() == pytest.approx(
        [3, 2**0.5]
    )
