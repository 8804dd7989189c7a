"""LPIPS against its published definition, with hand-made weights in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undust.errors import UndustError
from undust.networks.features.base import FeatureNetwork
from undust.networks.features.perceptual import PerceptualDistance


class TwoLayers(FeatureNetwork):
    """A pixel's colours, and the sums and differences of its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.side = "two layers", None
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1).double()

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        first = (x + 1).square()
        return first, F.relu(self.conv(first))

    def pooled(self, x: Tensor) -> Tensor:
        return self.maps(x)[1].mean((2, 3))


def defined(maps_x: Tensor, maps_y: Tensor, heads: list[list[float]]) -> float:
    """Zhang et al. 2018, eq. 1, position by position, for one pair."""
    total = 0.0
    for x, y, weights in zip(maps_x, maps_y, heads, strict=True):
        x, y = (z.detach().numpy() for z in (x, y))
        positions: list[float] = []
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                a, b = x[:, row, column], y[:, row, column]
                a, b = (v / (np.sqrt((v**2).sum()) + 1e-10) for v in (a, b))
                terms = zip(weights, a, b, strict=True)
                positions.append(sum(w * (p - q) ** 2 for w, p, q in terms))
        total += float(np.mean(positions))
    return total


def pictures(seed: int) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.rand(3, 3, 7, 6, generator=chance, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("weighted", [True, False])
def test_the_published_definition(weighted: bool):
    torch.manual_seed(0)
    network, x, y = TwoLayers(), pictures(1), pictures(2)
    heads = [[0.5, 2.0, 0.25], [1.0, 0.125, 0.75, 3.0]]
    given = [torch.tensor(head, dtype=torch.float64) for head in heads] if weighted else None
    distance = PerceptualDistance(network, given)
    used = heads if weighted else [[1.0] * 3, [1.0] * 4]
    maps = [list(zip(*network.maps(z), strict=True)) for z in (x, y)]
    expected = [defined(*pair, used) for pair in zip(*maps, strict=True)]
    assert distance(x, y).tolist() == pytest.approx(expected, rel=1e-9)
    assert distance(x, x).tolist() == [0, 0, 0]
    assert distance.name == ("LPIPS" if weighted else "perceptual distance") + ", two layers"


@torch.enable_grad()
def test_gradients_go_to_the_pictures_and_are_finite_where_no_feature_is_active():
    torch.manual_seed(0)
    network, x, y = TwoLayers().requires_grad_(False), pictures(1), pictures(2)
    with torch.no_grad():
        network.conv.bias.fill_(-100)
    x.requires_grad_()
    distance = PerceptualDistance(network)
    distance(x, y).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.any()
    with torch.no_grad():
        network.conv.bias.fill_(0.1)
    assert torch.autograd.gradcheck(lambda a: distance(a, y), x, atol=1e-6)


def test_heads_of_another_network_are_refused():
    distance = PerceptualDistance(TwoLayers(), [torch.ones(3), torch.ones(5)])
    with pytest.raises(UndustError, match="heads have 3, 5 weights; two layers has 3, 4 channels"):
        distance(pictures(1), pictures(2))
