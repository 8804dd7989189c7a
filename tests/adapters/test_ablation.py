"""Ablations of a U-Net against the same computed by hand; the network itself stays as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from undust.adapters.ablation import (
    Change,
    as_unet,
    changed,
    conditions,
    record_stages,
    timesteps,
    without_skips,
)
from undust.errors import UndustError
from undust.networks.conditioning import Conditioning
from undust.networks.unet import AnyUNet
from variants import build

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.fixture(scope="module")
def network() -> AnyUNet:
    return as_unet(build("sd1").unet)


@pytest.fixture
def inputs(network: AnyUNet) -> tuple[Tensor, Tensor, Conditioning]:
    cond = Conditioning(
        batch=2, text=torch.randn(2, 7, network.config.at("cross_attention_dim", 0))
    )
    return torch.randn(2, 4, 8, 8), torch.tensor([10.0, 700.0]), cond


def by_hand(
    network: AnyUNet, x: Tensor, timestep: Tensor, cond: Conditioning, cut: set[int]
) -> Tensor:
    """The forward pass with zeros for some skip connections."""
    time, context = network.embed(timestep, cond, x.dtype), cond.text
    states = network.down(network.conv_in(x), time, context)
    assert network.mid_block is not None
    x = network.mid_block(states[-1], time, context)
    states = [state * (place not in cut) for place, state in enumerate(states)]
    for block in network.up_blocks:
        x = block(x, states, time, context)
    return network.conv_out(torch.nn.functional.silu(network.conv_norm_out(x)))


def test_without_skips(network: AnyUNet, inputs: tuple[Tensor, Tensor, Conditioning]):
    count = len(network.skips)
    for cut in ([], [0], [count - 1], [1, 2], range(count)):
        found = changed(without_skips(cut))(network)(*inputs)
        assert torch.allclose(found, by_hand(network, *inputs, set(cut)), atol=1e-6)
    different = [changed(without_skips([k]))(network)(*inputs) for k in range(count)]
    assert all(not torch.equal(each, network(*inputs)) for each in different)


def test_other_time_steps(network: AnyUNet, inputs: tuple[Tensor, Tensor, Conditioning]):
    x, _, cond = inputs
    found = changed(timesteps(lambda t: torch.full_like(t, 300)))(network)(*inputs)
    assert torch.equal(found, network(x, torch.full((2,), 300.0), cond))


def test_other_conditions(network: AnyUNet, inputs: tuple[Tensor, Tensor, Conditioning]):
    x, timestep, cond = inputs
    assert cond.text is not None
    other = replace(cond, text=cond.text.flip(0))
    found = changed(conditions(lambda _: other))(network)(*inputs)
    assert torch.equal(found, network(x, timestep, other))


def test_stages(network: AnyUNet, inputs: tuple[Tensor, Tensor, Conditioning]):
    found: dict[str, Tensor] = {}
    output = changed(record_stages(found.__setitem__))(network)(*inputs)
    assert torch.equal(output, network(*inputs))
    blocks = len(network.up_blocks)
    down, up = ([f"{way}_blocks.{k}" for k in range(blocks)] for way in ("down", "up"))
    assert [*found] == [*down, "mid_block", *up]
    last = torch.nn.functional.silu(network.conv_norm_out(found[up[-1]]))
    assert torch.equal(network.conv_out(last), output)


@pytest.mark.parametrize(
    "change",
    [without_skips([0]), timesteps(lambda t: t + 1), record_stages(lambda *_: None)],
)
def test_the_network_itself_stays(
    network: AnyUNet, inputs: tuple[Tensor, Tensor, Conditioning], change: Change
):
    before = network(*inputs)
    copied = changed(change)(network)
    copied(*inputs)
    assert torch.equal(network(*inputs), before)
    pairs = zip(copied.parameters(), network.parameters(), strict=True)
    assert all(own is other for own, other in pairs)
    hooks = [module._forward_pre_hooks or module._forward_hooks for module in network.modules()]
    assert not any(hooks)


def test_other_networks_are_refused():
    with pytest.raises(UndustError, match=r"needs a U-Net; this model has a \w+"):
        changed()(build("sd1").autoencoder)  # type: ignore[arg-type]
