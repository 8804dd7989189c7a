"""The perceptual distance of pictures (Zhang et al. 2018, LPIPS)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undust.errors import UndustError
from undust.networks.features.base import FeatureNetwork

EPS = 1e-10  # of the lengths of feature vectors


class PerceptualDistance(nn.Module):
    """Σ over layers of the mean over positions of ‖w ⊙ (x̂ − ŷ)‖² (Zhang et al. 2018, eq. 1).

    x̂ and ŷ are the feature maps divided by their length at each position. heads: the squares of w
    for each layer [C]; None for ones. kind: "LPIPS" with heads, else "perceptual distance"; name:
    with the network's, for logs and figures. The weights stay as they are;
    gradients go to the pictures. Raises UndustError for heads of other widths than the maps, found
    at the first pictures.
    """

    def __init__(self, features: FeatureNetwork, heads: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.features = features
        self.kind = "LPIPS" if heads else "perceptual distance"
        self.name = f"{self.kind}, {features.name}"
        self._layers = len(heads) if heads else 0
        for index, head in enumerate(heads or ()):
            self.register_buffer(f"head{index}", head.flatten()[:, None, None])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Two batches of pictures [B,3,H,W] in [-1,1] → their distances [B]."""
        pairs = list(zip(self.features.maps(x), self.features.maps(y), strict=True))
        heads = [getattr(self, f"head{index}") for index in range(self._layers)]
        channels = [len(of_x[0]) for of_x, _ in pairs]
        if heads and channels != [len(head) for head in heads]:
            raise UndustError(
                f"the heads have {', '.join(str(len(head)) for head in heads)} weights; "
                f"{self.features.name} has {', '.join(map(str, channels))} channels"
            )
        layers: list[Tensor] = []
        for index, (of_x, of_y) in enumerate(pairs):
            squares = (_directions(of_x) - _directions(of_y)).square()
            weighted = squares * heads[index] if heads else squares
            layers.append(weighted.sum(1).mean((1, 2)))
        return torch.stack(layers).sum(0)


def _directions(x: Tensor) -> Tensor:
    """Feature vectors [B,C,h,w] of length 1 at each position; 0 where they are 0."""
    return F.normalize(x, dim=1, eps=EPS)
