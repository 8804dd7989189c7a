from __future__ import annotations

import pytest
import torch
from torch import nn

from undust.networks.discriminator import PatchDiscriminator


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70), (4, 142)])
@torch.enable_grad()
def test_a_logit_sees_the_published_patch(layers: int, patch: int) -> None:
    """Isola et al. 2017: 70×70 pixels with three layers; 16 and 34 are in their table as well."""
    network = PatchDiscriminator(layers=layers, channels=2, norm="none").double()
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    x = torch.rand(1, 3, 192, 192, dtype=torch.float64, requires_grad=True)
    logits = network(x)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = x.grad[0].abs().sum(0) > 0
    assert seen.any(0).sum() == seen.any(1).sum() == patch


def test_the_published_layers() -> None:
    """Channels 64, 128, 256, 512, 1 and no bias before a norm (pix2pix, NLayerDiscriminator)."""
    layers = list(PatchDiscriminator().layers)
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions] == [64, 128, 256, 512, 1]
    assert [conv.stride[0] for conv in convolutions] == [2, 2, 2, 1, 1]
    assert [conv.bias is None for conv in convolutions] == [False, True, True, True, False]
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in layers) == 3


@pytest.mark.parametrize(("norm", "alone"), [("batch", False), ("group", True), ("none", True)])
def test_only_batch_norm_mixes_pictures(norm, alone: bool) -> None:
    network = PatchDiscriminator(layers=2, channels=8, norm=norm).eval()
    x = torch.randn(4, 3, network.smallest, network.smallest)
    assert network(x).shape == (4, 1, 1, 1)
    same = torch.allclose(network(x)[:1], network(x[:1]), atol=1e-6)
    assert same == alone
