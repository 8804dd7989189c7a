"""A ControlNet's names in the original code: those published, against diffusers, both ways."""

from __future__ import annotations

import pytest
import torch
from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

from undust.formats import controlnet as controlnets
from undust.formats.networks import empty_network
from undust.formats.original import infer, key_map, keys
from undust.networks.config import ControlNetConfig
from undust.networks.controlnet import ControlNet

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
HALVES = {
    "sd1": {"block_out_channels": (32, 64, 64), "down_block_types": (CROSS, CROSS, PLAIN)},
    "sd2": {
        "block_out_channels": (64, 128),
        "down_block_types": (CROSS, PLAIN),
        "attention_head_dim": (1, 2),
        "use_linear_projection": True,
        "layers_per_block": 1,
    },
    "sdxl": {
        "block_out_channels": (64, 128, 128),
        "down_block_types": (PLAIN, CROSS, CROSS),
        "attention_head_dim": (1, 2, 2),
        "transformer_layers_per_block": (1, 2, 3),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
        "layers_per_block": 1,
    },
}
# What the published configurations say otherwise than the defaults.
PUBLISHED = {
    "controlnet-sd1": ControlNetConfig(cross_attention_dim=768),
    "controlnet-sd2": ControlNetConfig(
        cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
    ),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_published_file_is_known_whole(kind, published, hollow):
    shapes = published(kind)
    network = controlnets.load(hollow(shapes), None)
    assert network.config == PUBLISHED[kind]
    written = controlnets.to_original(network)
    assert {key: tuple(tensor.shape) for key, tensor in written.items()} == shapes


@pytest.mark.parametrize("half", HALVES)
def test_diffusers_converts_ours_to_its_own(half):
    theirs = ControlNetModel(cross_attention_dim=48, **HALVES[half])
    own = theirs.state_dict()
    where = keys.controlnet(own.keys())
    assert where.keys() == own.keys()
    assert len(set(where.values())) == len(own)
    file = key_map.to_original(own, where)
    converted = convert_controlnet_checkpoint(
        {f"control_model.{key}": tensor for key, tensor in file.items()}, dict(theirs.config)
    )
    if half == "sdxl":  # whose vector beside the time step their converter leaves out
        converted |= {name: own[name] for name in own if name.startswith("add_embedding.")}
    assert converted.keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in converted.items())
    back = key_map.from_original(file, where)
    assert all(torch.equal(tensor, own[name]) for name, tensor in back.items())


@pytest.mark.parametrize("hint", [(16, 32, 96, 256), (4, 6), (5,)], ids=str)
def test_the_hints_widths_are_seen(hint):
    config = ControlNetConfig(
        cross_attention_dim=48,
        attention_head_dim=8,
        conditioning_embedding_out_channels=hint,
        **HALVES["sd1"],
    )
    own = empty_network(ControlNet, config).state_dict()
    where = keys.controlnet(own.keys())
    assert where["controlnet_cond_embedding.conv_out.bias"].key == (
        f"input_hint_block.{4 * len(hint) - 2}.bias"
    )
    shapes = {where[name].key: tuple(tensor.shape) for name, tensor in own.items()}
    assert infer.controlnet(shapes, heads={48: lambda _: 8}) == config


def test_what_is_none_of_a_controlnets_has_no_place():
    own = empty_network(
        ControlNet, ControlNetConfig(cross_attention_dim=48, **HALVES["sd1"])
    ).state_dict()
    more = [*own, "task_embedding", "up_blocks.0.resnets.0.conv1.weight", "down_blocks.3.x"]
    assert keys.controlnet(more) == keys.controlnet(own.keys())
    assert keys.controlnet([]) == {}
