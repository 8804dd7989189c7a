"""The convolutions of VGG16 (Simonyan & Zisserman 2015, configuration D)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from undust.networks.features.base import IMAGENET, FeatureNetwork

BLOCKS = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512,) * 4)
CAFFE = (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)  # mean and scale of bytes, red first
LEAST = 16  # pixels: four poolings


class VGG16(FeatureNetwork):
    """Its maps follow relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3; keys as torchvision's.

    mean, std: of red, green and blue in the units of `data_range`, 1 for [0, 1], 255 for bytes.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str = "VGG16",
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
        data_range: float = 1.0,
    ) -> None:
        super().__init__()
        self.name, self.side = name, 224
        layers: list[nn.Module] = []
        self._ends: list[int] = []
        for widths in BLOCKS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for before, after in pairwise(widths):
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            self._ends.append(len(layers))
        self.features = nn.Sequential(*layers)
        for key, value in (
            ("mean", torch.tensor(mean) * 2 / data_range - 1),
            ("std", torch.tensor(std) * 2 / data_range),
        ):
            self.register_buffer(key, value[:, None, None], persistent=False)
        self.eval()

    @property
    def convolutions(self) -> list[str]:
        """The keys of its 13 convolutions, in their order."""
        return [
            f"features.{index}"
            for index, layer in enumerate(self.features)
            if isinstance(layer, nn.Conv2d)
        ]

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B,3,H,W] → five maps [B,C,h,w]: 64, 128, 256, 512, 512 channels, halved each time."""
        self.require_side(x, LEAST)
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        found: list[Tensor] = []
        start = 0
        for end in self._ends:
            x = self.features[start:end](x)
            found.append(x)
            start = end
        return tuple(found)

    def pooled(self, x: Tensor) -> Tensor:
        """The means of the last map [B,512]."""
        return self.maps(self.squares(x))[-1].mean((2, 3))
