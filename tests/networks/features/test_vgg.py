"""VGG16's maps against a computation layer by layer from the published table."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from undust.errors import UndustError
from undust.networks.features.vgg import VGG16

# Simonyan & Zisserman 2015, table 1, column D: widths of 3×3 convolutions, "M" for max pooling.
COLUMN_D = (64, 64, "M", 128, 128, "M", *(256,) * 3, "M", *(512,) * 3, "M", *(512,) * 3)


def test_maps_are_column_d_of_the_paper():
    torch.manual_seed(0)
    network = VGG16().double()
    weights = {key: value for key, value in network.state_dict().items() if "weight" in key}
    biases = {key: value for key, value in network.state_dict().items() if "bias" in key}
    x = torch.rand(2, 3, 40, 36, dtype=torch.float64) * 2 - 1
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double()[
        ..., None, None
    ]
    h, expected = (x / 2 + 0.5 - mean) / std, []
    pairs = iter(zip(weights.values(), biases.values(), strict=True))
    for entry in [*COLUMN_D, "M"]:
        if entry == "M":
            expected.append(h)
            h = F.max_pool2d(h, 2)
        else:
            weight, bias = next(pairs)
            assert len(weight) == entry
            h = F.conv2d(h, weight, bias, padding=1).clamp_min(0)
    found = network.maps(x)
    assert [len(each[0]) for each in found] == [64, 128, 256, 512, 512]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_names_are_torchvision_s():
    """Of vgg16's features: convolutions at these places, as in its published file."""
    places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert VGG16().convolutions == [f"features.{place}" for place in places]


def test_it_stays_in_evaluation_mode_and_small_pictures_are_refused():
    network = VGG16("a VGG16")
    assert not network.train().training
    with pytest.raises(UndustError, match="a VGG16 needs pictures of at least 16x16 pixels, not 2"):
        network.maps(torch.zeros(1, 3, 12, 20))
