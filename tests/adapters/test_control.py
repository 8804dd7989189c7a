"""Controls at work: how strongly, how long, and several together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from undust.adapters.control import AppliedControlNet, summed
from undust.errors import UndustError
from undust.networks.conditioning import Conditioning
from undust.networks.config import ControlNetConfig, UNetConfig
from undust.networks.controlnet import ControlNet
from undust.networks.unet import UNet

FIELDS = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
TOLD = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 5 + 6 * 6,
}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        yield


def network(**changes) -> ControlNet:
    made = ControlNet(ControlNetConfig(**{**FIELDS, **changes}))
    for parameter in made.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return made


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Conditioning]:
    timestep = torch.tensor([3.0, 700.0])[:batch].repeat(math.ceil(batch / 2))[:batch]
    return torch.randn(batch, 4, 6, 4), timestep, Conditioning(batch, torch.randn(batch, 5, 12))


def same(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-6) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and (x - y).norm() <= tolerance * y.norm()
        for x, y in zip(a, b, strict=True)
    )


def test_it_says_what_its_network_says_by_its_weight() -> None:
    net, (x, timestep, cond), hint = network(), inputs(), torch.rand(1, 3, 48, 32)
    whole = net(x, timestep, cond, hint)
    assert same(AppliedControlNet(net, hint)(x, timestep, cond), whole, 0)
    half = AppliedControlNet(net, hint, weight=-0.5)(x, timestep, cond)
    assert same(half, [-0.5 * part for part in whole])


def test_a_weight_of_nothing_asks_nothing() -> None:
    net = network()
    net.forward = None  # whoever asks it fails
    control = AppliedControlNet(net, torch.rand(1, 3, 48, 32), weight=0.0)
    assert control(*inputs()) == []
    assert not control.acts(1.0)


def test_what_is_told_beside_the_text_goes_on() -> None:
    net, (x, timestep, cond) = network(**TOLD), inputs()
    hint, pooled, sizes = torch.rand(1, 3, 48, 32), torch.randn(2, 5), torch.full((2, 6), 64.0)
    told = replace(cond, pooled=pooled, size_ids=sizes)
    expected = net(x, timestep, told, hint)
    assert same(AppliedControlNet(net, hint)(x, timestep, told), expected, 0)
    with pytest.raises(UndustError, match="41 channels together, 6 for each id"):
        AppliedControlNet(net, hint)(x, timestep, cond)


def test_each_picture_has_its_hint_in_every_round_of_guidance() -> None:
    net, (x, timestep, cond), hint = network(), inputs(4), torch.rand(2, 3, 48, 32)
    expected = net(x, timestep, cond, torch.cat([hint, hint]))
    assert same(AppliedControlNet(net, hint)(x, timestep, cond), expected, 0)
    with pytest.raises(UndustError, match="2 hints do not fit 3 pictures"):
        AppliedControlNet(net, hint)(*inputs(3))


def test_a_network_that_pools_says_nothing_to_what_is_to_be_avoided() -> None:
    """As its authors and diffusers ask it: only together with the prompt."""
    (x, timestep, cond), hint = inputs(), torch.rand(1, 3, 48, 32)
    negative = torch.tensor([True, False])
    for pools in (False, True):
        net = network(global_pool_conditions=pools)
        expected = net(x, timestep, cond, hint)
        for part in expected:
            assert pools == torch.equal(part, part[..., :1, :1].expand_as(part))
        if pools:
            expected = [part * torch.tensor([0.0, 1.0])[:, None, None, None] for part in expected]
        said = AppliedControlNet(net, hint)(x, timestep, replace(cond, negative=negative))
        assert same(said, expected, 0)


def test_a_network_of_less_precision_serves_a_unet_of_more() -> None:
    net, (x, timestep, cond), hint = network(), inputs(), torch.rand(1, 3, 48, 32)
    expected = net(x, timestep, cond, hint)
    said = AppliedControlNet(net.bfloat16(), hint)(x, timestep, cond)
    assert {part.dtype for part in said} == {torch.float32}
    assert same(said, expected, 0.1)


def test_an_inpainting_unet_shows_it_the_latent_alone() -> None:
    net, (x, timestep, cond), hint = network(), inputs(), torch.rand(1, 3, 48, 32)
    masked = replace(cond, extra_channels=torch.randn(2, 5, 6, 4))
    control = AppliedControlNet(net, hint)(x, timestep, masked)
    assert same(control, net(x, timestep, cond, hint), 0)
    up = {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "in_channels": 9}
    unet = UNet(UNetConfig(**{**FIELDS, **up}))
    assert unet(x, timestep, masked, control=control).shape == x.shape


@pytest.mark.parametrize(
    ("sigma", "acts"), [(0.4, False), (0.5, True), (1.0, True), (2.0, True), (2.1, False)]
)
def test_it_acts_between_its_levels(sigma, acts) -> None:
    assert (
        AppliedControlNet(network(), torch.rand(1, 3, 8, 8), low=0.5, high=2.0).acts(sigma) is acts
    )
    assert AppliedControlNet(network(), torch.rand(1, 3, 8, 8)).acts(sigma)


def test_several_add_up() -> None:
    first, second, inside = network(), network(), inputs()
    hint = torch.rand(1, 3, 48, 32)
    controls = [
        AppliedControlNet(first, hint, 0.5),
        AppliedControlNet(second, hint),
        AppliedControlNet(first, hint, 0.0),
    ]
    said = [control(*inside) for control in controls]
    assert same(summed(said), [a + b for a, b in zip(said[0], said[1], strict=True)], 0)
    assert summed([]) == summed([[], []]) == []
    assert summed(said[:1]) == said[0]
    other = AppliedControlNet(network(block_out_channels=(8, 24)), hint)(*inside)
    with pytest.raises(UndustError, match="for different models"):
        summed([*said, other])


@pytest.mark.parametrize(
    "values",
    [
        {"weight": math.inf},
        {"weight": math.nan},
        {"low": -1.0},
        {"low": 2.0, "high": 1.0},
        {"low": math.nan},
        {"high": math.nan},
    ],
)
def test_values_that_make_no_sense(values) -> None:
    with pytest.raises(UndustError, match=r"control: the (weight|range)"):
        AppliedControlNet(network(), torch.rand(1, 3, 8, 8), **values)
