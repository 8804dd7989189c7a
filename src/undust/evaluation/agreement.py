"""Agreement of generated pictures with the condition that they were generated under."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def edge_f_measure(found: Tensor, wanted: Tensor, tolerance: int = 1) -> Tensor:
    """The F-measure of edges [B, 1, H, W] of 0 and 1 against the wanted ones → [B], 0 to 1.

    2·P·R/(P + R): precision P is the share of found edge pixels with a wanted one at most
    `tolerance` pixels away along both axes, recall R that of wanted ones with a found one (Martin
    et al. 2004, section 3.1; several pixels may be near the same one). 1 if neither has edges.
    """

    def share(edges: Tensor, others: Tensor) -> Tensor:
        near = F.max_pool2d(others, 2 * tolerance + 1, stride=1, padding=tolerance)
        return (edges * near).sum((1, 2, 3)) / edges.sum((1, 2, 3)).clamp(min=1)

    found, wanted = found.double(), wanted.double()
    precision, recall = share(found, wanted), share(wanted, found)
    measure = 2 * precision * recall / (precision + recall).clamp(min=1e-9)
    return torch.where((found + wanted).amax((1, 2, 3)) > 0, measure, 1.0)
