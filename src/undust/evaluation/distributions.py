"""Distances of two sets of pictures by their features; all in float64, none depends on chance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from undust.errors import UndustError

ROWS = 1024  # of a matrix of pairs that are computed at a time
NEIGHBOURS = 3  # of precision and recall, as published


class PrecisionRecall(NamedTuple):
    """Shares of generated pictures among the real ones, and of real among the generated."""

    precision: float
    recall: float


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """The squared Fréchet distance of two normal distributions fitted to features [N,D], [M,D].

    Heusel et al. 2017, eq. 6: ‖μx − μy‖² + tr(Σx + Σy − 2 (Σx Σy)^½), with unbiased covariances
    Σ = RᵀR. The last term is the sum of the singular values of Rx Ryᵀ, which has no root of a
    singular matrix and stays exact with fewer pictures than features. Raises UndustError for fewer
    than two pictures.
    """
    (mean_x, root_x), (mean_y, root_y) = _moments(x), _moments(y)
    common = torch.linalg.svdvals(root_x @ root_y.T).sum()
    spread = root_x.square().sum() + root_y.square().sum()
    return float((mean_x - mean_y).square().sum() + spread - 2 * common)


def kernel_distance(x: Tensor, y: Tensor) -> tuple[float, float]:
    """The unbiased squared MMD of features [N,D], [M,D], kernel (x·y/D + 1)³; its standard error.

    Bińkowski et al. 2018, section 4 (KID), of all pictures instead of the mean over random
    subsets. The standard error is the jackknife's over the pictures of both sets; NaN for two
    pictures. Raises UndustError for fewer than two pictures.
    """
    _require(x, y)
    n, m = len(x), len(y)
    within_x, within_y = (_kernel_sums(z, z) - _kernel_diagonal(z) for z in (x, y))
    x_to_y, y_to_x = _kernel_sums(x, y), _kernel_sums(y, x)
    mean_x, mean_y = within_x.sum() / (n * (n - 1)), within_y.sum() / (m * (m - 1))
    across = x_to_y.sum() / (n * m)
    variance = 0.0
    for within, to_other, count, others, constant in (
        (within_x, x_to_y, n, m, mean_y),
        (within_y, y_to_x, m, n, mean_x),
    ):
        if count < 3:
            variance = math.nan
            break
        inner = (within.sum() - 2 * within) / ((count - 1) * (count - 2))
        without = inner + constant - 2 * (to_other.sum() - to_other) / ((count - 1) * others)
        variance += float(without.var(correction=0)) * (count - 1)
    return float(mean_x + mean_y - 2 * across), math.sqrt(variance)


def classifier_score(probabilities: Tensor) -> float:
    """Exp of the mean KL divergence of class probabilities [N,K] from their mean.

    Salimans et al. 2016 (inception score), of all pictures at once.
    """
    p = probabilities.double()
    terms = torch.xlogy(p, p) - torch.xlogy(p, p.mean(0))
    return float(terms.sum(1).mean().exp())


def precision_recall(real: Tensor, generated: Tensor) -> PrecisionRecall:
    """Precision and recall of generated features [N,D] against real ones [M,D].

    Kynkäänniemi et al. 2019, eq. 1 and 2: a picture belongs to the other set if it lies within the
    distance of one of its members to that member's third nearest neighbour. Raises UndustError
    for fewer than four pictures.
    """
    _require(real, generated, least=NEIGHBOURS + 1)
    return PrecisionRecall(_share_within(generated, real), _share_within(real, generated))


def _share_within(x: Tensor, members: Tensor) -> float:
    radii = torch.cat(
        [  # the nearest is the member itself
            squares.topk(NEIGHBOURS + 1, largest=False).values[:, -1]
            for squares in _squared_distances(members, members)
        ]
    )
    inside = [(squares <= radii).any(1) for squares in _squared_distances(x, members)]
    return float(torch.cat(inside).double().mean())


def _squared_distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Squared distances of all pairs in blocks of rows [≤ROWS,M]."""
    y = y.double()
    lengths = y.square().sum(1)
    for part in x.split(ROWS):
        rows = part.double()
        squares = rows.square().sum(1, keepdim=True) + lengths - 2 * (rows @ y.T)
        yield squares.clamp_min(0)


def _kernel_sums(x: Tensor, y: Tensor) -> Tensor:
    """For each of x [N,D] the sum of its kernel with all of y [M,D] → [N]."""
    y = y.double()
    width = x.shape[1]
    return torch.cat([(part.double() @ y.T / width + 1).pow(3).sum(1) for part in x.split(ROWS)])


def _kernel_diagonal(x: Tensor) -> Tensor:
    return (x.double().square().sum(1) / x.shape[1] + 1).pow(3)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [D], and R [min(N,D),D] with the covariance RᵀR."""
    _require(x)
    x = x.double()
    mean = x.mean(0)
    return mean, torch.linalg.qr((x - mean) / math.sqrt(len(x) - 1), mode="r").R


def _require(*sets: Tensor, least: int = 2) -> None:
    few = min(len(each) for each in sets)
    if few < least:
        raise UndustError(f"a distance of sets needs at least {least} pictures in each, not {few}")
