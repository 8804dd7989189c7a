"""Our names ↔ the original's: of published files, against diffusers' converter, and both ways."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from undust.errors import UndustError
from undust.formats.networks import empty_network
from undust.formats.original import infer, key_map, keys
from undust.formats.original.key_map import KeySpec, TensorLayout
from undust.formats.original.variants import FIRST_STAGE, UNET, VARIANTS
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from undust.networks.unet import UNet

PUBLISHED = ("sd1", "sd2", "sdxl", "sdxl-refiner", "x4-upscaler")
# What the published configurations say; a level without attention says nothing of it here.
UNETS = {
    "sd1": UNetConfig(cross_attention_dim=768),
    "sd2": UNetConfig(
        cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
    ),
}


def below(shapes, prefix):
    return {key[len(prefix) :]: shape for key, shape in shapes.items() if key.startswith(prefix)}


@pytest.mark.parametrize("variant", UNETS)
def test_configurations_are_those_published(variant, published):
    shapes = below(published(variant), UNET)
    assert VARIANTS[variant].network.infer(shapes) == UNETS[variant]


@pytest.mark.parametrize("variant", PUBLISHED)
def test_averages_have_names_of_their_own(variant, published):
    names = [key for key in published(variant) if key.startswith(UNET)]
    averages = {keys.ema(name) for name in names}
    assert len(averages) == len(names)
    assert not any("." in name.removeprefix("model_ema.") for name in averages)
    assert keys.ema(f"{UNET}input_blocks.0.0.weight") == (
        "model_ema.diffusion_modelinput_blocks00weight"
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_diffusers_converts_our_unet_to_its_own(variant, tiny):
    config, _ = tiny(variant).parts["unet"]
    theirs = UNet2DConditionModel.from_config(config.model_dump(mode="json"))
    own = theirs.state_dict()
    file = key_map.to_original(own, keys.unet(own, config))
    converted = convert_ldm_unet_checkpoint(
        {UNET + key: tensor for key, tensor in file.items()}, dict(theirs.config)
    )
    assert converted.keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in converted.items())
    back = key_map.from_original(file, keys.unet(own, config))
    assert back.keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in back.items())


@pytest.mark.parametrize(
    "fields",
    [
        {"block_out_channels": (32, 64, 32, 96), "layers_per_block": 2},
        {"block_out_channels": (32,), "layers_per_block": 1, "latent_channels": 3},
        {"block_out_channels": (64, 32), "layers_per_block": 3},
    ],
    ids=["four levels", "one level", "three layers"],
)
def test_diffusers_converts_our_first_stage_to_its_own(fields):
    config = AutoencoderConfig(**fields)
    theirs = AutoencoderKL.from_config(config.model_dump(mode="json"))
    own = theirs.state_dict()
    where = keys.first_stage(own, config)
    file = key_map.to_original(own, where)
    assert file["encoder.mid.attn_1.q.weight"].ndim == 4
    assert file["encoder.mid.attn_1.norm.weight"].ndim == 1
    prefixed = {FIRST_STAGE + key: tensor for key, tensor in file.items()}
    converted = convert_ldm_vae_checkpoint(prefixed, dict(theirs.config))
    assert converted.keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in converted.items())
    back = key_map.from_original(file, where)
    assert all(torch.equal(tensor, own[name]) for name, tensor in back.items())


def test_attention_at_a_level_of_the_first_stage():
    """As in kl-f16 and kl-f32 of the latent diffusion paper; diffusers' converter has no such."""
    config = AutoencoderConfig(
        block_out_channels=(32, 32, 64),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
    )
    own = empty_network(Autoencoder, config).state_dict()
    file = {spec.key: own[name].shape for name, spec in keys.first_stage(own, config).items()}
    assert "encoder.down.2.attn.0.proj_out.weight" in file
    assert "decoder.up.2.attn.1.norm.bias" in file
    assert infer.first_stage(file, sample_size=32) == config


def test_diffusers_converts_our_open_clip_to_its_own():
    config = TextEncoderConfig(
        vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=9, projection_dim=24, hidden_act="gelu",
    )  # fmt: skip
    theirs = CLIPTextModelWithProjection(CLIPTextConfig(**config.model_dump(mode="json")))
    own = theirs.state_dict()
    file = key_map.to_original(own, keys.open_clip(own, config))
    assert file["transformer.resblocks.2.attn.in_proj_weight"].shape == (72, 24)
    assert torch.equal(file["text_projection"].T, own["text_projection.weight"])
    prefix = "conditioner.embedders.1.model."
    converted = convert_open_clip_checkpoint(
        theirs, {prefix + key: tensor for key, tensor in file.items()}, prefix=prefix
    )
    assert converted.keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in converted.items())
    back = key_map.from_original(file, keys.open_clip(own, config))
    assert all(torch.equal(tensor, own[name]) for name, tensor in back.items())


@pytest.mark.parametrize("short", [False, True])
def test_diffusers_converts_our_clip_to_its_own(short, tiny):
    _, own = tiny("sd1").parts["text_encoder"]
    prefix = VARIANTS["sd1"].texts[0].prefix
    where = key_map.with_prefix(prefix, keys.clip(own), "text_model." if short else "")
    file = key_map.to_original(own, where)
    converted = convert_ldm_clip_checkpoint(file)
    expected = {name.removeprefix("text_model.") if short else name for name in own}
    assert converted.keys() == expected


def test_a_place_has_one_tensor(tiny):
    for variant in VARIANTS:
        for config, own in tiny(variant).parts.values():
            if isinstance(config, UNetConfig):
                found = keys.unet(own, config)
            elif isinstance(config, AutoencoderConfig):
                found = keys.first_stage(own, config)
            else:
                found = keys.open_clip(own, config)
            assert len(set(found.values())) == len(own)


def test_what_the_original_has_no_name_for_is_named():
    config = UNetConfig(addition_embed_type="text", cross_attention_dim=64)
    with pytest.raises(UndustError, match=r"no name for add_embedding\.norm1"):
        keys.unet(empty_network(UNet, config).state_dict(), config)


def test_queries_keys_and_values_belong_together():
    where = {"q": KeySpec("S", TensorLayout.QUERY), "k": KeySpec("S", TensorLayout.KEY)}
    with pytest.raises(UndustError, match="S cannot be written without value"):
        key_map.to_original({"q": torch.zeros(2, 3), "k": torch.zeros(2, 3)}, where)


def test_shapes_are_those_that_are_written():
    where = {
        "a": KeySpec("A", TensorLayout.PIXEL),
        "b": KeySpec("B", TensorLayout.TRANSPOSED),
        "q": KeySpec("S", TensorLayout.QUERY),
        "k": KeySpec("S", TensorLayout.KEY),
        "v": KeySpec("S", TensorLayout.VALUE),
        "same": KeySpec("same"),
    }
    own = {name: torch.randn(2, 3) for name in where}
    written = key_map.to_original(own, where)
    ours = {name: tuple(tensor.shape) for name, tensor in own.items()}
    assert key_map.original_shapes(ours, where) == {
        key: tuple(t.shape) for key, t in written.items()
    }
    back = key_map.from_original(written, where)
    assert all(torch.equal(tensor, own[name]) for name, tensor in back.items())
    assert key_map.mismatches(key_map.original_shapes(ours, where), ours, where) == []


@pytest.mark.parametrize(
    ("form", "shape", "fits"),
    [
        (TensorLayout.PIXEL, (2, 3, 1, 1), True),
        (TensorLayout.PIXEL, (2, 3, 1), True),
        (TensorLayout.PIXEL, (2, 3), True),
        (TensorLayout.PIXEL, (2, 3, 1, 1, 1), False),
        (TensorLayout.PIXEL, (3, 2, 1, 1), False),
        (TensorLayout.PIXEL, (2, 3, 3, 3), False),
        (TensorLayout.SAME, (2, 3, 1), False),
        (TensorLayout.TRANSPOSED, (3, 2), True),
        (TensorLayout.TRANSPOSED, (2, 3), False),
        (TensorLayout.QUERY, (6, 3), True),
        (TensorLayout.QUERY, (2, 3), False),
    ],
)
def test_only_forms_that_can_be_read_fit(form, shape, fits):
    where = {"ours": KeySpec("theirs", form)}
    found = key_map.mismatches({"theirs": shape}, {"ours": (2, 3)}, where)
    assert found == (
        []
        if fits
        else [
            f"1 of another shape: theirs {list(shape)} instead of "
            f"{list(key_map.original_shapes({'ours': (2, 3)}, where)['theirs'])}"
        ]
    )
    if fits and form is not TensorLayout.QUERY:
        assert key_map.from_original({"theirs": torch.zeros(shape)}, where)["ours"].shape == (2, 3)
