"""Keys of LoRA files: which module they mean, in all the ways in which they are written."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from formats.original.conftest import build
from undust.formats.lora.names import CHANGED, Target, lookup, split
from undust.formats.networks import empty_network
from undust.networks.config import TextEncoderConfig, UNetConfig
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet

RESNET, ATTENTION = "down_blocks.1.resnets.0", "down_blocks.1.attentions.0"
BLOCK = f"{ATTENTION}.transformer_blocks.0.attn1"
LAYER = "text_model.encoder.layers.0.self_attn.q_proj"
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"


def networks(variant: str) -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        parts = build(variant).parts
    kinds = {"unet": UNet, "text_encoder": TextEncoder, "text_encoder_2": TextEncoder}
    return {part: empty_network(kinds[part], parts[part][0]) for part in kinds if part in parts}


@pytest.fixture(scope="module")
def sdxl():
    return lookup(networks("sdxl"))


@pytest.fixture(scope="module")
def sd1():
    return lookup(networks("sd1"))


@pytest.mark.parametrize(
    ("key", "module", "role"),
    [
        ("lora_unet_conv_in.lora_up.weight", "lora_unet_conv_in", "lora_up"),
        ("lora_unet_conv_in.lora_down.weight", "lora_unet_conv_in", "lora_down"),
        ("lora_unet_conv_in.lora_mid.weight", "lora_unet_conv_in", "lora_mid"),
        ("lora_unet_conv_in.alpha", "lora_unet_conv_in", "alpha"),
        ("lora_unet_conv_in.dora_scale", "lora_unet_conv_in", "dora_scale"),
        ("lora_unet_conv_in.dora_scale.weight", "lora_unet_conv_in", "magnitude"),
        ("unet.x.processor.to_q_lora.up.weight", "unet.x.processor.to_q", "lora_up"),
        ("unet.x.to_out.0.lora.down.weight", "unet.x.to_out.0", "lora_down"),
        ("text_encoder.x.lora_linear_layer.up.weight", "text_encoder.x", "lora_up"),
        ("unet.x.lora_A.weight", "unet.x", "lora_down"),
        ("unet.x.lora_B.default_0.weight", "unet.x", "lora_up"),
        ("unet.x.lora_B.bias", "unet.x", "up_bias"),
        ("unet.x.lora_B.default.bias", "unet.x", "up_bias"),
        ("unet.x.processor.to_q_lora.alpha", "unet.x.processor.to_q", "alpha"),
        ("unet.base_model.model.x.lora_B.weight", "unet.x", "lora_up"),
        ("base_model.model.x.lora_B.weight", "x", "lora_up"),
        ("base_model.model.x.lora_magnitude_vector", "x", "magnitude"),
        ("unet.x.lora_magnitude_vector.weight", "unet.x", "magnitude"),
        ("unet.x.lora_magnitude_vector.default.weight", "unet.x", "magnitude"),
        ("lora_unet_x.hada_w1_a", "lora_unet_x", "hada_w1_a"),
        ("lora_unet_x.hada_t2", "lora_unet_x", "hada_t2"),
        ("lora_unet_x.lokr_w1", "lora_unet_x", "lokr_w1"),
        ("lora_unet_x.lokr_w2_b", "lora_unet_x", "lokr_w2_b"),
        ("lora_unet_x.diff", "lora_unet_x", "diff"),
        ("lora_unet_x.diff_b", "lora_unet_x", "bias"),
        ("lora_unet_x.w_norm", "lora_unet_x", "diff"),
        ("lora_unet_x.b_norm", "lora_unet_x", "bias"),
        ("lora_unet_x.weight", "", ""),
        ("lora_unet_x.lora_A.bias", "", ""),
        ("lora_unet_x.bias", "", ""),
        ("lora_unet_x.lora_up", "", ""),
        ("unet.x.lora_B.a.b.weight", "", ""),
        ("", "", ""),
    ],
)
def test_roles(key, module, role):
    assert split(key) == (module, role)


@pytest.mark.parametrize(
    ("name", "part", "module"),
    [
        # kohya, by diffusers' names and by the original code's
        ("lora_unet_down_blocks_1_attentions_0_proj_in", "unet", f"{ATTENTION}.proj_in"),
        ("lora_unet_input_blocks_3_1_proj_in", "unet", f"{ATTENTION}.proj_in"),
        ("lora_unet_input_blocks_3_0_in_layers_2", "unet", f"{RESNET}.conv1"),
        ("lora_unet_input_blocks_3_0_skip_connection", "unet", f"{RESNET}.conv_shortcut"),
        ("lora_unet_input_blocks_2_0_op", "unet", "down_blocks.0.downsamplers.0.conv"),
        ("lora_unet_middle_block_0_emb_layers_1", "unet", "mid_block.resnets.0.time_emb_proj"),
        ("lora_unet_label_emb_0_2", "unet", "add_embedding.linear_2"),
        ("lora_unet_time_embed_0", "unet", "time_embedding.linear_1"),
        ("lora_unet_out_2", "unet", "conv_out"),
        ("diffusion_model.out.2", "unet", "conv_out"),
        ("model.diffusion_model.out.2", "unet", "conv_out"),
        ("unet.out.2", "unet", "conv_out"),  # of the Open Model Initiative, as clip_l and clip_g
        (f"unet.unet.{BLOCK}.to_q", "unet", f"{BLOCK}.to_q"),
        ("lycoris_down_blocks_1_attentions_0_proj_in", "unet", f"{ATTENTION}.proj_in"),
        (f"clip_l.{LAYER}", "text_encoder", LAYER),
        (f"clip_g.{LAYER}", "text_encoder_2", LAYER),
        ("clip_g.text_projection", "text_encoder_2", "text_projection"),
        (f"text_encoders.clip_l.transformer.{LAYER}", "text_encoder", LAYER),
        (f"text_encoders.clip_g.transformer.{LAYER}", "text_encoder_2", LAYER),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", "text_encoder", LAYER),
        ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", "text_encoder_2", LAYER),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", "text_encoder", LAYER),
        ("lora_te1_encoder_layers_0_self_attn_q_proj", "text_encoder", LAYER),
        # diffusers, old and new
        (f"unet.{BLOCK}.to_q", "unet", f"{BLOCK}.to_q"),
        (f"{BLOCK}.to_q", "unet", f"{BLOCK}.to_q"),
        (f"unet.{BLOCK}.processor.to_q", "unet", f"{BLOCK}.to_q"),
        (f"unet.{BLOCK}.processor.to_out", "unet", f"{BLOCK}.to_out.0"),
        (f"unet.{BLOCK}.to_out.0", "unet", f"{BLOCK}.to_out.0"),
        (f"unet.{BLOCK}.to_out", "unet", f"{BLOCK}.to_out.0"),
        (f"text_encoder.{LAYER}", "text_encoder", LAYER),
        (f"text_encoder_2.{LAYER}", "text_encoder_2", LAYER),
        ("text_encoder.encoder.layers.0.self_attn.q_proj", "text_encoder", LAYER),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_q", "text_encoder", LAYER),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.to_out",
            "text_encoder",
            "text_model.encoder.layers.0.self_attn.out_proj",
        ),
    ],
)  # fmt: skip
def test_one_module_of_many_names(name, part, module, sdxl):
    assert sdxl[name] == {Target(part, module)}


@pytest.mark.parametrize(
    ("name", "module"),
    [
        (
            "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_out_0",
            "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0",
        ),
        (
            "lora_unet_input_blocks_2_1_transformer_blocks_0_ff_net_0_proj",
            "down_blocks.0.attentions.1.transformer_blocks.0.ff.net.0.proj",
        ),
        ("lora_unet_mid_block_attentions_0_norm", "mid_block.attentions.0.norm"),
    ],
)
def test_names_of_stable_diffusion_1(name, module, sd1):
    assert sd1[name] == {Target("unet", module)}


def test_the_only_text_encoder_is_called_te():
    refiner = lookup(networks("sdxl-refiner"))
    name = "text_model_encoder_layers_0_self_attn_q_proj"
    second = Target("text_encoder_2", LAYER)
    assert refiner[f"lora_te_{name}"] == refiner[f"lora_te2_{name}"] == {second}
    assert refiner[f"lora_te1_{name}"] == refiner[f"text_encoder.{LAYER}"] == {second}
    both = lookup(networks("sdxl-refiner"), [f"lora_te2_{name}.alpha"])
    assert both[f"lora_te2_{name}"] == both[f"lora_te_{name}"] == {second}
    assert both.keys().isdisjoint((f"lora_te1_{name}", f"text_encoder.{LAYER}"))


def test_what_is_left_open_is_known_to_be(sdxl):
    assert sdxl[LAYER] == {Target("text_encoder", LAYER), Target("text_encoder_2", LAYER)}


@pytest.mark.parametrize(
    "config",
    [
        UNetConfig(cross_attention_dim=768),
        UNetConfig(
            block_out_channels=(320, 640, 1280),
            down_block_types=(PLAIN, CROSS, CROSS),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
    ],
    ids=["sd1", "sdxl"],
)  # fmt: skip
def test_no_two_modules_of_a_full_model_share_a_name(config):
    """A "_" for a "." makes none alike."""
    text = TextEncoderConfig(vocab_size=9, hidden_size=64, intermediate_size=64)
    parts = {"unet": empty_network(UNet, config), "text_encoder": empty_network(TextEncoder, text)}
    known = lookup(parts)
    assert all(len(targets) == 1 for targets in known.values())
    layers = {
        Target(part, name)
        for part, network in parts.items()
        for name, layer in network.named_modules()
        if isinstance(layer, CHANGED)
    }
    assert {target for targets in known.values() for target in targets} == layers
    for part, start in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
        for target in layers:
            if target.part == part:
                assert known[start + target.module.replace(".", "_")] == {target}


def test_a_network_that_the_original_code_never_had_keeps_its_own_names():
    config = UNetConfig(
        block_out_channels=(32, 32), down_block_types=(CROSS, PLAIN),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1,
        addition_embed_type="text", cross_attention_dim=64,
    )  # fmt: skip
    known = lookup({"unet": empty_network(UNet, config)})
    assert known["lora_unet_add_embedding_proj"] == {Target("unet", "add_embedding.proj")}
    assert "lora_unet_input_blocks_0_0" not in known


@given(st.text(st.sampled_from("ab._lor") | st.characters(), max_size=60))
def test_any_text_has_a_role_or_none(key):
    module, role = split(key)
    assert bool(role) or not module


@pytest.mark.parametrize("piece", [".lora_B", ".lora_magnitude_vector.a", "_lora.up", ".x", "."])
def test_long_keys_take_no_time(piece):
    assert split(piece * 20_000) in {("", ""), split(piece * 20_000)}
