"""U-Net calls with the deep features of another call, against diffusers' layers with a hook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from undust.errors import UndustError
from undust.networks.conditioning import Conditioning
from undust.networks.config import DiTConfig, UNet2DConfig, UNetConfig
from undust.networks.deep_cache import DeepCache, DeepFeatures
from undust.networks.dit import DiT
from undust.networks.unet import AnyUNet, UNet, UNet2D

TEXT = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
}
PLAIN = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}


@pytest.fixture(params=["with text", "without text", "one level"])
def unets(request, shake) -> tuple[AnyUNet, Any]:
    """Ours and diffusers', with the same weights."""
    if request.param == "without text":
        theirs = UNet2DModel(**PLAIN).eval()
        shake(theirs)
        ours: AnyUNet = UNet2D(UNet2DConfig.read(dict(theirs.config)))
    else:
        one = {
            "block_out_channels": (16,),
            "down_block_types": ("CrossAttnDownBlock2D",),
            "up_block_types": ("CrossAttnUpBlock2D",),
        }
        theirs = UNet2DConditionModel(**{**TEXT, **(one if request.param == "one level" else {})})
        shake(theirs.eval())
        ours = UNet(UNetConfig.read(dict(theirs.config)))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def inputs(unet: AnyUNet, step: float = 500.0) -> tuple[Tensor, Tensor, Conditioning]:
    text = torch.randn(2, 7, 24) if isinstance(unet, UNet) else None
    return torch.randn(2, 4, 8, 6), torch.full((2,), step), Conditioning(2, text)


def test_a_whole_call_is_the_same_to_the_bit(unets):
    ours, _ = unets
    given, deep = inputs(ours), DeepFeatures()
    assert torch.equal(ours(*given, deep=deep), ours(*given))
    assert deep.features is not None and len(deep.features) == 2
    assert torch.equal(ours(*given, deep=deep), ours(*given))


def test_a_cached_call_reuses_the_input_of_the_last_layer(unets, assert_close):
    """All of diffusers' network runs; a hook replaces what its last decoder layer gets from it."""
    ours, theirs = unets
    first, then, deep = inputs(ours, 700.0), inputs(ours, 600.0), DeepFeatures()
    ours(*first, deep=deep)
    last, seen = theirs.up_blocks[-1].resnets[-1], []

    def remember(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0])

    def replace(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        deeper = deep_channels(given[0])
        return torch.cat([seen[0][:, :deeper], given[0][:, deeper:]], 1), *given[1:]

    def deep_channels(x: Tensor) -> int:
        return x.shape[1] - theirs.conv_in.out_channels

    def call(x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        text = (cond.text,) if isinstance(theirs, UNet2DConditionModel) else ()
        return theirs(x, timestep, *text).sample

    hook = last.register_forward_pre_hook(remember)
    call(*first)
    hook.remove()
    last.register_forward_pre_hook(replace)
    assert_close(ours(*then, deep=deep), call(*then))


def test_only_the_first_convolution_and_the_last_layer_run(unets):
    ours, _ = unets
    deep, ran = DeepFeatures(), []
    ours(*inputs(ours), deep=deep)
    for name, module in ours.named_modules():
        if name.count(".") == 3 and "resnets" in name:
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    ours(*inputs(ours), deep=deep)
    level, layer = len(ours.up_blocks) - 1, len(ours.up_blocks[-1].resnets) - 1
    assert ran == [f"up_blocks.{level}.resnets.{layer}"]


def test_the_control_of_the_last_skip_is_kept(unets):
    """With the residuals of the whole call, those of the first convolution among them."""
    ours, _ = unets
    (x, *rest), deep = inputs(ours), DeepFeatures()
    states = ours.down(ours.conv_in(x), torch.zeros(2, 64), rest[1].text)
    skips = [torch.randn_like(state) for state in (*states, states[-1])]
    whole = ours(x, *rest, control=skips, deep=deep)
    assert torch.equal(deep.control[0], skips[0]) and len(deep.control) == 1
    assert torch.equal(whole, ours(x, *rest, control=skips))
    assert torch.equal(ours(x, *rest, deep=deep), whole)


def test_transformers_have_none():
    dit = DiT(DiTConfig(num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=4))
    with pytest.raises(UndustError, match="a diffusion transformer takes no deep cache"):
        dit(torch.randn(1, 4, 4, 4), torch.ones(1), Conditioning(1), deep=DeepFeatures())


@pytest.mark.parametrize(
    ("levels", "whole"),
    [
        # one call a step; a sampler with two; levels between two of the schedule
        ([10, 8, 6, 4, 2], [10, 6, 2]),
        ([10, 8, 8, 6, 6, 4, 4, 2, 2], [10, 6, 2]),
        ([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], [10, 6, 2]),
        # above the first level, and up again
        ([12, 10, 6, 10, 6], [12, 6, 10, 6]),
        # float32 rounds
        ([10, 6 * (1 + 1e-7), 5], [10, 6 * (1 + 1e-7)]),
    ],
)
def test_the_schedule_decides_which_calls_are_whole(levels: list[float], whole: list[float]):
    cache, found = DeepCache(1, (10.0, 6.0, 2.0)), []
    for level in levels:
        if cache.kept(level, ()) is None:
            found.append(level)
            cache.keep(DeepFeatures(torch.zeros(1)), level, ())
    assert found == whole
    assert cache.kept(levels[-1], "another ControlNet") is None
    assert cache.started().kept(levels[-1], ()) is None
