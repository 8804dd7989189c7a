from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d
from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F

from undust.diffusion.guidance import BlurredQueries, IdentityMap
from undust.errors import UndustError
from undust.networks.attention import attend
from undust.networks.conditioning import Conditioning
from undust.networks.config import UNetConfig
from undust.networks.unet import UNet

TINY = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
}


@pytest.fixture
def unets(shake) -> tuple[UNet, UNet2DConditionModel]:
    theirs = UNet2DConditionModel(**TINY).eval()
    shake(theirs)
    ours = UNet(UNetConfig.read(dict(theirs.config)))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def inputs(batch: int, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor, Conditioning]:
    return (
        torch.randn(batch, 4, height, width),
        torch.full((batch,), 498.5),
        Conditioning(batch, torch.randn(batch, 7, 24)),
    )


def middle(unet: UNet2DConditionModel) -> dict:
    """The self-attention of the middle block."""
    return {
        name: module for name, module in unet.mid_block.named_modules() if name.endswith("attn1")
    }


@pytest.mark.parametrize("size", [(8, 8), (6, 10)], ids=str)
def test_identity_map_agrees_with_diffusers(unets, size, assert_close) -> None:
    """Theirs perturbs the second half of a batch."""
    ours, theirs = unets
    x, timestep, cond = inputs(4, *size)
    for attention in middle(theirs).values():
        attention.set_processor(PAGIdentitySelfAttnProcessor2_0())
    expected = theirs(x, timestep, encoder_hidden_states=cond.text).sample
    perturbed = [None, None, IdentityMap(), IdentityMap()]
    assert_close(ours(x, timestep, cond, perturbed=perturbed), expected)


@pytest.mark.parametrize("deviation", [0.4, 1.0, 3.0, math.inf])
def test_blurred_queries_agree_with_diffusers(unets, deviation, assert_close) -> None:
    """Their blur in a hook of ours: their own chooses the wrong one of two (the next test)."""
    ours, theirs = unets
    x, timestep, cond = inputs(2)

    def blur(module: object, given: object, q: Tensor) -> Tensor:
        return blurred(q, deviation)

    for attention in middle(theirs).values():
        attention.to_q.register_forward_hook(blur)
    expected = theirs(x, timestep, encoder_hidden_states=cond.text).sample
    assert_close(ours(x, timestep, cond, perturbed=[BlurredQueries(deviation)] * 2), expected)


def blurred(q: Tensor, deviation: float) -> Tensor:
    """Their function, told to blur where the deviation is finite, and to average where not."""
    if deviation == math.inf:
        return _gaussian_blur_2d(q.clone(), 1, 1.0, 9999.9)
    size = math.ceil(6 * deviation) + 1 - math.ceil(6 * deviation) % 2
    return _gaussian_blur_2d(q.clone(), size, deviation, 0.0)


def test_diffusers_averages_where_it_should_blur() -> None:
    """Hong 2024: a finite deviation leaves neighbours more alike than strangers, an infinite one
    leaves one query. Theirs (0.42) takes the finite for the infinite and the other way round."""
    q = torch.randn(1, 36, 8)
    theirs = _gaussian_blur_2d(q.clone(), 7, 1.0, 9999.9)
    torch.testing.assert_close(theirs, q.mean(1, keepdim=True).expand_as(q))
    ours = blurred(q, 1.0)
    assert (ours - q.mean(1, keepdim=True)).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (1, 4), (2, 3)], ids=str)
@pytest.mark.parametrize("deviation", [0.3, 1.2])
def test_the_blur_is_the_gaussian_mirrored_at_the_edges(shape, deviation, assert_close) -> None:
    """By torch's own padding and convolution, one line after the other."""
    q, k, v = torch.randn(3, 2, shape[0] * shape[1], 8)
    grid = q.transpose(1, 2).reshape(16, 1, *shape)
    for dim, side in ((2, shape[0]), (3, shape[1])):
        radius = min(math.ceil(6 * deviation) // 2, side // 2)
        line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / deviation) ** 2)
        kernel = (line / line.sum()).reshape([1, 1, -1, 1] if dim == 2 else [1, 1, 1, -1])
        padding = [0, 0, radius, radius] if dim == 2 else [radius, radius, 0, 0]
        grid = F.conv2d(F.pad(grid, padding, mode="reflect"), kernel)
    wanted = grid.reshape(2, 8, -1).transpose(1, 2)
    ours = BlurredQueries(deviation)(q, k, v, attend=partial(attend, heads=2), shape=shape)
    assert_close(ours, attend(wanted, k, v, heads=2))


def test_only_the_rows_that_ask_for_it_are_perturbed(unets, assert_close) -> None:
    ours, _ = unets
    x, timestep, cond = inputs(4)
    kinds = [None, IdentityMap(), BlurredQueries(), None]
    together = ours(x, timestep, cond, perturbed=kinds)
    plain = ours(x, timestep, cond)
    for place, kind in enumerate(kinds):
        one = slice(place, place + 1)
        alone = ours(x[one], timestep[one], cond[one], perturbed=[kind])
        assert_close(together[one], alone)
        if kind is None:
            assert torch.equal(together[one], plain[one])
        else:
            assert (together[one] - plain[one]).abs().max() > 1e-3
    assert torch.equal(ours(x, timestep, cond, perturbed=[None] * 4), plain)


def test_gradients_go_through(unets) -> None:
    ours, _ = unets
    x, timestep, cond = inputs(2)
    with torch.enable_grad():
        ours(x, timestep, cond, perturbed=[IdentityMap(), None]).sum().backward()
    value = ours.mid_block.attentions[0].transformer_blocks[0].attn1.to_v.weight
    assert value.grad is not None
    assert value.grad.isfinite().all()


def test_what_cannot_be_perturbed() -> None:
    for deviation in (0.0, -1.0, math.nan):
        with pytest.raises(UndustError, match=r"seg: the blur has to be above 0"):
            BlurredQueries(deviation)
    bare = UNet(UNetConfig.read({**TINY, "mid_block_type": None}))
    x, timestep, cond = inputs(1)
    with pytest.raises(UndustError, match="no attention in a middle block"):
        bare(x, timestep, cond, perturbed=[IdentityMap()])
