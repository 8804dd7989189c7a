from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from undust.networks.conditioning import Conditioning
from undust.networks.config import UNetConfig
from undust.networks.unet import UNet

TINY = {
    "sample_size": 16,
    "block_out_channels": (16, 32, 48, 48),
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
}
LAYOUTS = {
    "stable diffusion 1.5, scaled down": {},
    "stable diffusion 2, scaled down": {
        "use_linear_projection": True,
        "attention_head_dim": (2, 4, 6, 8),
        "upcast_attention": True,
    },
    "depths by level": {
        "layers_per_block": (1, 2, 1, 3),
        "transformer_layers_per_block": (1, 2, 1, 3),
        "cross_attention_dim": (24, 24, 24, 24),
    },
    "two levels, attention at the coarse one": {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
    },
    "attention only on the way down": {
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    },
    "one level": {
        "block_out_channels": (16,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
    },
    "no middle, the other time embedding": {
        "mid_block_type": None,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
    "other depths on the way up, one block in the middle": {  # as in SSD-1B
        "block_out_channels": (16, 32, 48),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [0, [2, 1], [1, 3]],
        "reverse_transformer_layers_per_block": [[1, 2, 3], [2, 1, 1], 1],
    },
    "one list of depths for all, and a whole middle": {
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "transformer_layers_per_block": [1, [2, 3]],
        "reverse_transformer_layers_per_block": [2, [1, 2, 1]],
    },
    "all words at once beside the time": {
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 4,
    },
    "scaled by the time": {"resnet_time_scale_shift": "scale_shift"},
    "other channels": {"in_channels": 9, "out_channels": 8, "norm_eps": 1e-3},
}


def pair(shake, **changes) -> tuple[UNet, UNet2DConditionModel]:
    theirs = UNet2DConditionModel(**{**TINY, **changes}).eval()
    shake(theirs)
    ours = UNet(UNetConfig.read(dict(theirs.config)))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def inputs(config: UNetConfig, batch: int, height: int, width: int):
    x = torch.randn(batch, config.in_channels, height, width)
    timestep = torch.tensor([0.0, 1.0, 498.5, 999.0])[-batch:]
    context = torch.randn(batch, 7, config.at("cross_attention_dim", 0))
    return x, timestep, Conditioning(batch, context)


@pytest.mark.parametrize("size", [(16, 16), (9, 13)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parity_with_diffusers(layout, size, shake, assert_close) -> None:
    ours, theirs = pair(shake, **LAYOUTS[layout])
    x, timestep, cond = inputs(ours.config, 4, *size)
    expected = theirs(x, timestep, encoder_hidden_states=cond.text).sample
    assert_close(ours(x, timestep, cond), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_diffusers_opens_ours(layout, shake, assert_close) -> None:
    ours = UNet(UNetConfig(**{**TINY, **LAYOUTS[layout]}))
    shake(ours)
    theirs = UNet2DConditionModel.from_config(ours.config.model_dump(mode="json")).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x, timestep, cond = inputs(ours.config, 1, 16, 8)
    expected = theirs(x, timestep, encoder_hidden_states=cond.text).sample
    assert_close(ours(x, timestep, cond), expected)


@pytest.mark.parametrize("linear", [False, True])
def test_channels_last_gives_the_same_and_stays(linear, shake, assert_close) -> None:
    ours, _ = pair(shake, use_linear_projection=linear)
    x, timestep, cond = inputs(ours.config, 2, 9, 16)
    expected = ours(x, timestep, cond)
    ours.to(memory_format=torch.channels_last)
    output = ours(x.to(memory_format=torch.channels_last), timestep, cond)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert_close(output, expected)


def test_half_precision_runs_throughout(shake) -> None:
    ours, _ = pair(shake)
    x, timestep, cond = inputs(ours.config, 2, 16, 16)
    expected = ours(x, timestep, cond)
    output = ours.bfloat16()(x.bfloat16(), timestep, cond.to(x.device, torch.bfloat16))
    assert output.dtype == torch.bfloat16
    assert (output - expected).norm() < 0.1 * expected.norm()


def test_starting_at_zero_silences_output_and_residuals(shake) -> None:
    ours, _ = pair(shake)
    x, timestep, cond = inputs(ours.config, 2, 16, 16)
    ours.start_at_zero()
    assert not ours(x, timestep, cond).any()
    shake(ours.conv_out)
    assert ours(x, timestep, cond).any()
    assert cond.text is not None
    other = Conditioning(2, -cond.text)
    # Text and time step come in through residual branches alone.
    assert torch.equal(ours(x, timestep, cond), ours(x, timestep.flip(0), other))


def test_gradients_reach_every_weight(shake) -> None:
    ours, _ = pair(shake)  # at least 2×2 pixels everywhere: one has nothing to choose from
    with torch.enable_grad():
        ours(*inputs(ours.config, 2, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in ours.parameters())
