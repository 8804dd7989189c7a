"""The U-Net without text, compared with diffusers' UNet2DModel of the same weights."""

from __future__ import annotations

import inspect

import pytest
import torch
from diffusers import UNet2DModel

from undust.errors import UndustError
from undust.networks.conditioning import Conditioning
from undust.networks.config import UNet2DConfig
from undust.networks.unet import UNet2D

TINY = {
    "sample_size": 16,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 8,
}
LAYOUTS = {
    "ddpm": {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0},
    "adm": {
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 4,
        "num_class_embeds": 5,
    },
    "scale and shift, a middle without normalisation": {"resnet_time_scale_shift": "scale_shift"},
    "one head, of latents and a map": {
        "attention_head_dim": None,
        "in_channels": 7,
        "out_channels": 4,
        "layers_per_block": 1,
    },
    "no middle": {"mid_block_type": None},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parity_with_diffusers(layout, shake, assert_close) -> None:
    ours = UNet2D(UNet2DConfig.read({**TINY, **LAYOUTS[layout]}))
    shake(ours)
    theirs = UNet2DModel.from_config(ours.config.model_dump(mode="json")).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    config = ours.config
    x, timestep = torch.randn(2, config.in_channels, 16, 8), torch.tensor([10.0, 900.0])
    label = torch.tensor([1, 4]) if config.num_class_embeds else None
    extra = x[:, config.out_channels :] if config.in_channels > config.out_channels else None
    cond = Conditioning(2, label=label, extra_channels=extra)
    expected = theirs(x, timestep, class_labels=label).sample
    assert_close(ours(x[:, : config.out_channels], timestep, cond), expected)


def test_the_defaults_are_those_of_diffusers() -> None:
    theirs = inspect.signature(UNet2DModel.__init__).parameters
    own = UNet2DConfig.model_fields
    assert own.keys() == theirs.keys() - {"self"}
    assert {name: field.default for name, field in own.items()} == {
        name: theirs[name].default for name in own
    }


def test_perturbation_reaches_the_middle(shake) -> None:
    ours = UNet2D(UNet2DConfig.read(TINY))
    shake(ours)
    x, timestep, cond = torch.randn(2, 3, 16, 16), torch.tensor([10.0, 900.0]), Conditioning(2)
    plain = ours(x, timestep, cond)
    changed = ours(x, timestep, cond, perturbed=(None, lambda q, k, v, *, attend, shape: v))
    assert torch.allclose(changed[0], plain[0], atol=1e-5)
    assert (changed[1] - plain[1]).abs().max() > 1e-3


def test_a_missing_label_and_impossible_sizes_are_named() -> None:
    labelled = UNet2D(UNet2DConfig.read({**TINY, "num_class_embeds": 3}))
    with pytest.raises(UndustError, match="class label"):
        labelled(torch.zeros(1, 3, 8, 8), torch.zeros(1), Conditioning(1))
    with pytest.raises(UndustError, match="must divide 32"):
        UNet2DConfig.read({**TINY, "attention_head_dim": 12})
    with pytest.raises(UndustError, match="up_block_types needs one entry"):
        UNet2DConfig.read({**TINY, "up_block_types": ["UpBlock2D"]})
