from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel, VQModel
from pydantic import ValidationError
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from undust.errors import UndustError
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import (
    AutoencoderConfig,
    NetworkConfig,
    TextEncoderConfig,
    TinyConfig,
    UNetConfig,
    VQConfig,
)
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet

# The config.json files of huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5.
SD15_UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD15_AUTOENCODER = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SD15_TEXT_ENCODER = {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
    "vocab_size": 49408,
}
# What Stable Diffusion 2.1's U-Net says otherwise.
SD21_UNET = {
    **SD15_UNET,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "upcast_attention": True,
    "use_linear_projection": True,
}


def shapes(module: nn.Module, prefix: str = "") -> dict[str, torch.Size]:
    return {prefix + key: value.shape for key, value in module.state_dict().items()}


@pytest.mark.parametrize("fields", [SD15_UNET, SD21_UNET], ids=["1.5", "2.1"])
def test_full_size_unet_has_the_published_keys(fields) -> None:
    with torch.device("meta"):
        ours = UNet(UNetConfig.read(fields))
        assert shapes(ours) == shapes(UNet2DConditionModel.from_config(fields))


def test_full_size_autoencoder_has_the_published_keys() -> None:
    with torch.device("meta"):
        ours = Autoencoder(AutoencoderConfig.read(SD15_AUTOENCODER))
        assert shapes(ours) == shapes(AutoencoderKL.from_config(SD15_AUTOENCODER))
    assert ours.downsampling_factor == 8
    assert ours.config.scaling_factor == 0.18215


def test_full_size_text_encoder_has_the_published_keys() -> None:
    with torch.device("meta"):
        ours = TextEncoder(TextEncoderConfig.read(SD15_TEXT_ENCODER))
        theirs = CLIPTextModel(CLIPTextConfig(**SD15_TEXT_ENCODER))
        # transformers 5 leaves out the prefix that every published file has.
        assert shapes(ours) == shapes(theirs, "text_model.")


@pytest.mark.parametrize(
    ("config", "theirs"),
    [
        (UNetConfig, UNet2DConditionModel),
        (AutoencoderConfig, AutoencoderKL),
        (VQConfig, VQModel),
        (TinyConfig, AutoencoderTiny),
    ],
)
def test_defaults_are_those_of_diffusers(config: type[NetworkConfig], theirs) -> None:
    with torch.device("meta"):
        fields = dict(theirs().config)
    assert config.read(fields) == config()
    public = {key for key in fields if not key.startswith("_")} - config.housekeeping
    assert public == set(config.model_fields) - {"sample_size"} | ({"sample_size"} & public)


def test_defaults_are_those_of_transformers() -> None:
    # `architectures` is written by whoever saves a model, not by the configuration.
    fields = CLIPTextConfig().to_dict() | {"architectures": ["CLIPTextModel"]}
    assert TextEncoderConfig.read(fields) == TextEncoderConfig()


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (UNetConfig, "resnet_time_scale_shift", "ada_group"),
        (UNetConfig, "class_embed_type", "timestep"),
        (UNetConfig, "addition_embed_type", "text_time"),
        (UNetConfig, "dropout", 0.1),
        (UNetConfig, "act_fn", "gelu"),
        (UNetConfig, "down_block_types", ["AttnDownBlock2D"] * 4),
        (UNetConfig, "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        (UNetConfig, "transformer_layers_per_block", [[1, 2]] * 4),
        (UNetConfig, "transformer_layers_per_block", [1, 1, 1, [1]]),
        (UNetConfig, "transformer_layers_per_block", [1, 1]),
        (UNetConfig, "reverse_transformer_layers_per_block", [[1, 2], 1, 1, 1]),
        (UNetConfig, "reverse_transformer_layers_per_block", [1] * 3),
        (UNetConfig, "layers_per_block", 0),
        (UNetConfig, "layers_per_block", [2, 2]),
        (UNetConfig, "attention_head_dim", 7),
        (UNetConfig, "norm_num_groups", 7),
        (UNetConfig, "up_block_types", ["UpBlock2D"]),
        (UNetConfig, "colour", "blue"),
        (AutoencoderConfig, "latents_mean", [0.0] * 4),
        (AutoencoderConfig, "latents_std", [0.0] * 4),
        (AutoencoderConfig, "latents_std", [1.0] * 3),
        (AutoencoderConfig, "act_fn", "relu"),
        (AutoencoderConfig, "down_block_types", ["AttnDownBlock2D"]),
        (AutoencoderConfig, "up_block_types", ["UpDecoderBlock2D"] * 2),
        (AutoencoderConfig, "block_out_channels", []),
        (AutoencoderConfig, "norm_num_groups", 48),
        (AutoencoderConfig, "scaling_factor", 0),
        (VQConfig, "norm_type", "spatial"),
        (TinyConfig, "encoder_block_out_channels", [64, 64, 64, 32]),
        (TinyConfig, "num_decoder_blocks", [1, 1, 1]),
        (VQConfig, "lookup_from_codebook", True),
        (TextEncoderConfig, "hidden_act", "relu"),
        (TextEncoderConfig, "attention_dropout", 0.1),
        (TextEncoderConfig, "num_attention_heads", 7),
        (TextEncoderConfig, "model_type", "t5"),
        (TextEncoderConfig, "num_hidden_layers", 2**31),
        (TextEncoderConfig, "vocab_size", 2**63),
        (TextEncoderConfig, "eos_token_id", 2**70),
        (TextEncoderConfig, "layer_norm_eps", float("inf")),
        (UNetConfig, "transformer_layers_per_block", [1, 1, 1, 10**9]),
        (UNetConfig, "norm_eps", float("nan")),
        (UNetConfig, "freq_shift", 160),
        (AutoencoderConfig, "scaling_factor", 1e999),
        (AutoencoderConfig, "out_channels", [0] * 10**3),
        (AutoencoderConfig, "act_fn", "a" * 10**5),
    ],
)
def test_what_is_not_built_is_refused_by_name(config: type[NetworkConfig], field, value) -> None:
    with pytest.raises(UndustError, match=f"unsupported {config.__name__}: .*{field}") as raised:
        config.read({field: value})
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_several_faults_are_named_at_once_and_each_once() -> None:
    with pytest.raises(UndustError) as raised:
        AutoencoderConfig.read({"block_out_channels": "wide", "flux": 1})
    assert str(raised.value) == (
        "unsupported AutoencoderConfig: block_out_channels = 'wide': "
        "has to be a list; flux = 1: is not known"
    )


def test_of_many_faults_the_first_are_named() -> None:
    with pytest.raises(UndustError, match=r"a0 = 1: .*; a3 = 1: .* and 95 more$"):
        AutoencoderConfig.read({f"a{number}": 1 for number in range(99)})


@pytest.mark.parametrize(
    "fields", [{f"a{number}": 1 for number in range(9999)}, {"block_out_channels": ["a"] * 9999}]
)
def test_very_many_faults_are_not_even_looked_for(fields: dict[str, object]) -> None:
    with pytest.raises(UndustError, match="9,999 entries; at most 1,000 are read"):
        AutoencoderConfig.read(fields)


def test_a_name_with_half_of_a_letter_is_a_fault() -> None:
    with pytest.raises(UndustError, match=r"the name of a field = 'a\\ud800': .*valid string"):
        UNetConfig.read({"a\ud800": 1})


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        UNetConfig().in_channels = 8


def test_reading_configurations_imports_no_torch() -> None:
    code = "import sys, undust.networks.config; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
