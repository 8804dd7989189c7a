"""The Inception network of the Fréchet inception distance (Heusel et al. 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undust.errors import UndustError
from undust.networks.features.base import FeatureNetwork


class ReferenceInception(FeatureNetwork):
    """TensorFlow's network of 2015-12-05 as published in TorchScript with StyleGAN2-ADA.

    network: bytes [B,3,H,W] → probabilities [B,1008], and with return_features the last pooled
    layer [B,2048]. It resizes pictures itself.
    """

    name = "Inception 2015-12-05"
    side = 299
    resizing = "bilinear of TensorFlow 1"
    classifies = published = True

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Raises UndustError: the published file gives no feature maps."""
        raise UndustError(f"{self.name} gives no feature maps; VGG16 and EfficientNet-Lite0 do")

    def pooled(self, x: Tensor) -> Tensor:
        """The last pooled layer [B,2048]."""
        return self.network(_bytes(x), return_features=True).float()

    def probabilities(self, x: Tensor) -> Tensor:
        """Of 1008 classes [B,1008]; without the bias, as in the published inception score."""
        return self.network(_bytes(x), no_output_bias=True).float()


def _bytes(x: Tensor) -> Tensor:
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
