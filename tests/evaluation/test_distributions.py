"""Distances of sets against scipy, numpy and torchmetrics on the same features."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from undust.errors import UndustError
from undust.evaluation.distributions import (
    classifier_score,
    frechet_distance,
    kernel_distance,
    precision_recall,
)


def features(count: int, width: int, seed: int, gain: float = 1.0, lift: float = 0.0) -> Tensor:
    """Non-negative, correlated and skew, as the last layer of a network."""
    chance = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) / width**0.5
    drawn = torch.randn(count, width, generator=chance) * gain + lift
    return torch.relu(drawn @ mixing + 0.1)


class Given(nn.Module):
    """In the place of torchmetrics' network: features instead of pictures."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


def arrays(*tensors: Tensor) -> list[NDArray[np.float64]]:
    return [tensor.double().numpy() for tensor in tensors]


@pytest.mark.parametrize(("n", "m", "width"), [(200, 150, 32), (40, 300, 32), (20, 25, 48)])
def test_frechet_distance_is_scipy_s(n: int, m: int, width: int):
    """With more pictures than features, with fewer in one set, and with fewer in both."""
    x, y = features(n, width, 0), features(m, width, 1, gain=1.2, lift=0.3)
    a, b = arrays(x, y)
    # A root of a symmetric matrix, which scipy computes well for a singular one too.
    values, vectors = scipy.linalg.eigh(np.cov(a.T))
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    inner = scipy.linalg.eigh(root @ np.cov(b.T) @ root, eigvals_only=True)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T))
    expected -= 2 * np.sqrt(inner.clip(0)).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9 * float(np.trace(np.cov(a.T))))


def test_frechet_distance_of_known_normal_distributions():
    """Of one number: (μx − μy)² + (σx − σy)²."""
    x, y = torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([[0.0], [4.0]])
    expected = float((x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_torchmetrics_says_the_same():
    fid = pytest.importorskip("torchmetrics.image.fid")
    kid = pytest.importorskip("torchmetrics.image.kid")
    inception = pytest.importorskip("torchmetrics.image.inception")
    x, y = features(300, 24, 0), features(260, 24, 1, gain=1.2)
    frechet = fid.FrechetInceptionDistance(feature=Given(24)).set_dtype(torch.float64)
    kernel = kid.KernelInceptionDistance(feature=Given(24), subsets=1, subset_size=260)
    for metric in (frechet, kernel):
        metric.update(x[:260].double(), real=True)
        metric.update(y.double(), real=False)
    assert frechet_distance(x[:260], y) == pytest.approx(frechet.compute().item(), rel=1e-6)
    expected = kernel.compute()[0].item()
    assert kernel_distance(x[:260], y)[0] == pytest.approx(expected, rel=1e-6)
    logits = 3 * x
    score = inception.InceptionScore(feature=Given(24), splits=1)
    score.update(logits)
    expected = score.compute()[0].item()
    assert classifier_score(logits.softmax(1)) == pytest.approx(expected, rel=1e-6)


def kernel_directly(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    def k(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
        return float((p @ q / len(p) + 1) ** 3)

    def mean_pairs(z: NDArray[np.float64]) -> float:
        pairs = [k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return float(np.mean(pairs))

    return mean_pairs(a) + mean_pairs(b) - 2 * float(np.mean([k(p, q) for p in a for q in b]))


def test_kernel_distance_pair_by_pair():
    x, y = features(9, 5, 0), features(7, 5, 1, lift=0.5)
    a, b = arrays(x, y)
    value, error = kernel_distance(x, y)
    assert value == pytest.approx(kernel_directly(a, b), rel=1e-9)
    # The jackknife by its definition: without each picture in turn.
    parts = [
        ([kernel_directly(np.delete(a, i, 0), b) for i in range(9)], 9),
        ([kernel_directly(a, np.delete(b, i, 0)) for i in range(7)], 7),
    ]
    variance = sum(np.var(without) * (count - 1) for without, count in parts)
    assert error == pytest.approx(np.sqrt(variance), rel=1e-9)


def test_kernel_distance_is_unbiased_and_knows_its_error():
    """Over many draws from one distribution: mean 0, and the deviation that each states."""
    drawn = [
        kernel_distance(features(60, 8, seed), features(60, 8, seed + 1000)) for seed in range(150)
    ]
    values, errors = (np.array(column) for column in zip(*drawn, strict=True))
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    assert errors.mean() == pytest.approx(values.std(), rel=0.35)


def test_precision_and_recall_picture_by_picture():
    real, generated = features(60, 6, 0), features(45, 6, 1, gain=0.8, lift=1.0)
    a, b = arrays(real, generated)

    def share(x: NDArray[np.float64], members: NDArray[np.float64]) -> float:
        inside = 0
        for p in x:
            for q in members:
                radius = np.sort(np.linalg.norm(members - q, axis=1))[3]
                if np.linalg.norm(p - q) <= radius:
                    inside += 1
                    break
        return inside / len(x)

    found = precision_recall(real, generated)
    assert found == pytest.approx((share(b, a), share(a, b)), abs=1e-12)
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, generated + 100) == (0, 0)


def test_classifier_score_of_known_predictions():
    """Sure and evenly spread over K classes: K. All the same: 1."""
    assert classifier_score(torch.eye(7).repeat(3, 1)) == pytest.approx(7)
    assert classifier_score(torch.full((5, 4), 0.25)) == pytest.approx(1)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    x, y = features(50, 6, 0), features(40, 6, 1)
    whole = kernel_distance(x, y), precision_recall(x, y)
    monkeypatch.setattr("undust.evaluation.distributions.ROWS", 7)
    assert kernel_distance(x, y)[0] == pytest.approx(whole[0][0], rel=1e-9)
    assert precision_recall(x, y) == whole[1]


def test_too_few_pictures():
    one, two = features(1, 4, 0), features(2, 4, 1)
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(UndustError, match="at least 2 pictures in each, not 1"):
            distance(one, two)
    with pytest.raises(UndustError, match="at least 4 pictures in each, not 2"):
        precision_recall(two, two)
    assert np.isnan(kernel_distance(two, two)[1])
