"""The discriminator of patches that a first stage is trained against."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

Norm = Literal["batch", "group", "none"]
LARGEST_FACTOR = 8  # of the first layer's channels
MAX_GROUPS = 32


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, section 3.2.2): a logit for each overlapping patch of a picture.

    `layers` convolutions of stride 2, then one of stride 1 and the logits; with 3 layers a patch
    has 70×70 pixels. The first convolution and the logits are without normalisation. norm: "batch"
    as published, by the statistics of the pictures given together, in evaluation mode too; "group":
    each picture alone.
    """

    def __init__(self, *, layers: int = 3, channels: int = 64, norm: Norm = "batch") -> None:
        super().__init__()
        self.smallest = 3 * 2**layers  # side of the pictures, pixels
        widths = [channels * min(2**layer, LARGEST_FACTOR) for layer in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers + 1):
            before, width, stride = widths[layer - 1], widths[layer], 1 if layer == layers else 2
            parts.append(nn.Conv2d(before, width, 4, stride, 1, bias=norm == "none"))
            parts += [*_norm(norm, width), nn.LeakyReLU(0.2)]
        parts.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.layers = nn.Sequential(*parts)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [B,3,H,W] in [-1,1], at least `smallest` a side → logits [B,1,h,w]."""
        return self.layers(x)


def _norm(norm: Norm, width: int) -> list[nn.Module]:
    if norm == "batch":
        return [nn.BatchNorm2d(width, track_running_stats=False)]
    return [nn.GroupNorm(math.gcd(width, MAX_GROUPS), width)] if norm == "group" else []


def _initialise(module: nn.Module) -> None:
    """As published: normal weights of deviation 0.02, those of norms around 1."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.02)
