"""Networks built without weights, from configurations that mean well and ill."""

from __future__ import annotations

import time

import pytest

from undust.errors import UndustError
from undust.formats.networks import MAX_TENSORS, empty_network
from undust.networks.config import TextEncoderConfig, UNetConfig
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet


def test_a_blank_network_has_names_and_shapes_and_no_memory():
    config = TextEncoderConfig(num_hidden_layers=1)
    parameters = dict(empty_network(TextEncoder, config).named_parameters())
    assert {name: tensor.shape for name, tensor in parameters.items()} == {
        name: tensor.shape for name, tensor in TextEncoder(config).named_parameters()
    }
    assert all(tensor.is_meta for tensor in parameters.values())


@pytest.mark.parametrize(
    "fields",
    [
        {"layers_per_block": 2**20},
        {"transformer_layers_per_block": 2**20},
        {
            "block_out_channels": [32] * 10**3,
            "down_block_types": ["DownBlock2D"] * 10**3,
            "up_block_types": ["UpBlock2D"] * 10**3,
        },
    ],
)
def test_a_network_without_end_is_not_built(fields: dict[str, object]):
    config = UNetConfig.read(fields)
    began = time.process_time()
    with pytest.raises(UndustError, match=f"network of over {MAX_TENSORS:,} tensors"):
        empty_network(UNet, config)
    assert time.process_time() - began < 5
