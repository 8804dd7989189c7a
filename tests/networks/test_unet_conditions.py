"""The U-Nets that are told more than tokens: Stable Diffusion XL's, and the upscaler's."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from undust.errors import UndustError
from undust.networks.conditioning import Conditioning
from undust.networks.config import UNetConfig
from undust.networks.unet import UNet

XL = {
    "sample_size": 16,
    "block_out_channels": (16, 32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": (1, 2, 4),
    "cross_attention_dim": 24,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 12 + 5 * 6,
    "norm_num_groups": 8,
}
UPSCALER = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "use_linear_projection": True,
    "only_cross_attention": (True, True, False),
    "num_class_embeds": 9,
    "in_channels": 7,
    "norm_num_groups": 8,
}
# The fields of huggingface.co/stabilityai/stable-diffusion-xl-base-1.0, its refiner and
# stable-diffusion-x4-upscaler that say something else than the defaults.
PUBLISHED = {
    "xl base": {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
    },
    "xl refiner": {
        "block_out_channels": [384, 768, 1536, 1536],
        "down_block_types": [
            "DownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": 4,
        "attention_head_dim": [6, 12, 24, 24],
        "cross_attention_dim": 1280,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
        "sample_size": 128,
    },
    "x4 upscaler": {
        "block_out_channels": [256, 512, 512, 1024],
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
        "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
        "attention_head_dim": 8,
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "only_cross_attention": [True, True, True, False],
        "num_class_embeds": 1000,
        "in_channels": 7,
        "sample_size": 128,
    },
}


@pytest.mark.parametrize("fields", PUBLISHED.values(), ids=PUBLISHED)
def test_full_size_has_the_published_keys(fields) -> None:
    with torch.device("meta"):
        ours = UNet(UNetConfig.read(fields)).state_dict()
        theirs = UNet2DConditionModel.from_config(fields).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def pair(shake, fields) -> tuple[UNet, UNet2DConditionModel]:
    theirs = UNet2DConditionModel(**fields).eval()
    shake(theirs)
    ours = UNet(UNetConfig.read(dict(theirs.config)))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("size", [(16, 16), (9, 13)], ids=str)
def test_parity_of_the_text_vector_and_the_sizes(size, shake, assert_close) -> None:
    ours, theirs = pair(shake, XL)
    x, timestep = torch.randn(2, 4, *size), torch.tensor([1.0, 981.0])
    context, pooled = torch.randn(2, 7, 24), torch.randn(2, 12)
    sizes = torch.tensor([[1024.0, 768, 0, 32, 6], [512, 512, 4, 0, 2.5]])
    expected = theirs(
        x,
        timestep,
        encoder_hidden_states=context,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
    ).sample
    assert_close(ours(x, timestep, Conditioning(2, context, pooled, sizes)), expected)
    other = ours(x, timestep, Conditioning(2, context, pooled, sizes + 100))
    assert (other - expected).norm() > 1e-3 * expected.norm()


def test_parity_of_classes_and_text_alone(shake, assert_close) -> None:
    ours, theirs = pair(shake, UPSCALER)
    x, timestep, context = torch.randn(3, 7, 8, 8), torch.full((3,), 500.0), torch.randn(3, 5, 24)
    label = torch.tensor([0, 8, 3])
    expected = theirs(x, timestep, encoder_hidden_states=context, class_labels=label).sample
    assert_close(ours(x, timestep, Conditioning(3, context, label=label)), expected)
    other = ours(x, timestep, Conditioning(3, context, label=label.flip(0)))
    assert not torch.allclose(other, expected)


def test_half_precision_runs_throughout(shake) -> None:
    ours, _ = pair(shake, XL)
    x, timestep, context = torch.randn(1, 4, 8, 8), torch.tensor([5.0]), torch.randn(1, 7, 24)
    cond = Conditioning(1, context, torch.randn(1, 12), torch.full((1, 5), 1024.0))
    expected = ours(x, timestep, cond)
    half = cond.to(x.device, torch.bfloat16)
    output = ours.bfloat16()(x.bfloat16(), timestep, half)
    assert output.dtype == torch.bfloat16
    assert (output - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"pooled": torch.zeros(1, 12)},
        {"size_ids": torch.zeros(1, 5)},
        {"pooled": torch.zeros(1, 12), "size_ids": torch.zeros(1, 6)},
    ],
    ids=["nothing", "no sizes", "no text", "a size too many"],
)
def test_what_is_not_told_is_asked_for(told) -> None:
    ours = UNet(UNetConfig.read(XL))
    with pytest.raises(UndustError, match="42 channels together, 6 for each id"):
        cond = Conditioning(1, torch.zeros(1, 2, 24), **told)
        ours(torch.zeros(1, 4, 8, 8), torch.zeros(1), cond)


def test_a_class_is_asked_for() -> None:
    ours = UNet(UNetConfig.read(UPSCALER))
    with pytest.raises(UndustError, match="needs a class"):
        cond = Conditioning(1, torch.zeros(1, 2, 24))
        ours(torch.zeros(1, 7, 8, 8), torch.zeros(1), cond)


@pytest.mark.parametrize(
    "fields",
    [
        {"addition_embed_type": "text_time"},
        {**XL, "addition_time_embed_dim": None},
        {**XL, "projection_class_embeddings_input_dim": None},
        {**XL, "projection_class_embeddings_input_dim": 6},
    ],
)
def test_half_a_description_is_refused(fields) -> None:
    with pytest.raises(UndustError, match="'text_time' needs addition_time_embed_dim and"):
        UNetConfig.read(fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("only_cross_attention", True),
        ("only_cross_attention", [True]),
        ("num_class_embeds", 0),
        ("addition_time_embed_dim", -1),
    ],
)
def test_what_is_not_built_is_refused_by_name(field, value) -> None:
    with pytest.raises(UndustError, match=field):
        UNetConfig.read({field: value})
