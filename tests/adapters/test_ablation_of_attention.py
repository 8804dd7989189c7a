"""Attention off, local and without some tokens, against the same computed by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from undust.adapters.ablation import (
    changed,
    conditions,
    cross_attention_text,
    local_self_attention,
    without_self_attention,
    without_tokens,
)
from undust.adapters.capture import record_self_attention
from undust.errors import UndustError
from undust.networks.attention import Attention, PixelAttention
from undust.networks.base import DenoiserNetwork
from undust.networks.conditioning import Conditioning
from undust.networks.config import UNet2DConfig
from undust.networks.unet import UNet2D
from variants import build

pytestmark = pytest.mark.usefixtures("seeded")

TOKENS = 7


def plain_unet() -> UNet2D:
    """A U-Net without text, whose attention over pixels is a `PixelAttention`."""
    config = UNet2DConfig(
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return UNet2D(config).eval()


def with_text() -> DenoiserNetwork:
    return build("sd1").unet


NETWORKS: list[Callable[[], DenoiserNetwork]] = [with_text, plain_unet]


def inputs(network: Any, batch: int = 2) -> tuple[Tensor, Tensor, Conditioning]:
    text = None
    if not isinstance(network, UNet2D):
        text = torch.randn(batch, TOKENS, network.config.at("cross_attention_dim", 0))
    x = torch.randn(batch, 4, 6, 4)
    return x, torch.full((batch,), 498.5), Conditioning(batch, text)


def self_attention_layers(network: nn.Module) -> dict[str, Attention]:
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, PixelAttention)
        or (isinstance(module, Attention) and name.endswith("attn1"))
    }


def zeroed(network: nn.Module) -> Any:
    """With zeros for the weights of the last layer of each self-attention."""
    copied = copy.deepcopy(network)
    for layer in self_attention_layers(copied).values():
        for parameter in layer.to_out.parameters():
            parameter.zero_()
    return copied


@pytest.mark.parametrize("make", NETWORKS)
def test_without_self_attention(make: Callable[[], DenoiserNetwork]):
    network = make()
    given = inputs(network)
    before = network(*given)
    off = changed(without_self_attention)(network)
    assert torch.equal(off(*given), zeroed(network)(*given))
    assert not torch.allclose(off(*given), before)
    assert torch.equal(network(*given), before)


@pytest.mark.parametrize("make", NETWORKS)
def test_a_window_of_the_whole_layer_changes_nothing(make: Callable[[], DenoiserNetwork]):
    network = make()
    given = inputs(network)
    before = network(*given)
    assert torch.allclose(changed(local_self_attention(6))(network)(*given), before, atol=1e-5)
    assert not torch.allclose(changed(local_self_attention(1))(network)(*given), before, atol=1e-5)
    assert torch.equal(network(*given), before)


@pytest.mark.parametrize("make", NETWORKS)
def test_a_window_of_one_pixel_is_that_pixels_value(make: Callable[[], DenoiserNetwork]):
    network = make()
    given = inputs(network)
    own = copy.deepcopy(network)  # a softmax over one pixel is 1: the output is its value
    for layer in self_attention_layers(own).values():
        layer.register_forward_hook(alone)
    assert torch.allclose(changed(local_self_attention(0))(network)(*given), own(*given), atol=1e-5)


def alone(module: nn.Module, given: tuple[Any, ...], _output: Tensor) -> Tensor:
    assert isinstance(module, Attention)
    x = given[0]
    if not isinstance(module, PixelAttention):
        return module.to_out(module.to_v(x))
    assert module.group_norm is not None
    tokens = module.group_norm(x).flatten(2).transpose(1, 2)
    return x + module.to_out(module.to_v(tokens)).transpose(1, 2).reshape(x.shape)


def test_a_window_of_neighbours():
    """One layer alone, against the softmax over each pixel's neighbours."""
    layer = PixelAttention(8, groups=4, eps=1e-5, heads=2)
    x = torch.randn(1, 8, 3, 4)
    expected = torch.zeros(12, 8)
    tokens = layer.group_norm(x).flatten(2)[0].T  # pyright: ignore[reportOptionalCall]
    q, k, v = (part(tokens).unflatten(1, (2, 4)) for part in (layer.to_q, layer.to_k, layer.to_v))
    for pixel in range(12):
        row, column = divmod(pixel, 4)
        near = [n for n in range(12) if abs(n // 4 - row) <= 1 and abs(n % 4 - column) <= 1]
        for head in range(2):
            scores = (k[near, head] @ q[pixel, head] / 2).softmax(0)
            expected[pixel, 4 * head : 4 * head + 4] = scores @ v[near, head]
    local: Any = nn.ModuleList([copy.deepcopy(layer)])
    local_self_attention(1)(local)
    found = local[0](x)
    assert torch.allclose(found, x + layer.to_out(expected).T.reshape(x.shape), atol=1e-6)


@pytest.mark.parametrize("make", NETWORKS)
def test_recorded_self_attention(make: Callable[[], DenoiserNetwork]):
    network = make()
    given = inputs(network)
    found: dict[str, Tensor] = {}
    places = [(0.0, 0.0), (0.99, 0.5), (1.0, 1.0)]
    recorded = changed(record_self_attention(places, found.__setitem__))(network)
    assert torch.equal(recorded(*given), network(*given))
    assert found.keys() == self_attention_layers(network).keys()
    kept: dict[str, Tensor] = {}
    watched = copy.deepcopy(network)
    for name, layer in self_attention_layers(watched).items():
        for part in ("to_q", "to_k"):

            def keep(_m: object, _i: object, output: Tensor, key: str = f"{name}.{part}"):
                kept[key] = output.double()

            getattr(layer, part).register_forward_hook(keep)
    watched(*given)
    for name, layer in self_attention_layers(watched).items():
        height, width = found[name].shape[2:]
        rows = [0, height // 2 * width + width - 1, height * width - 1]
        q, k = (
            kept[f"{name}.{part}"].unflatten(2, (layer.heads, -1)).transpose(1, 2)
            for part in ("to_q", "to_k")
        )
        expected = (q[:, :, rows] @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1)
        assert torch.allclose(found[name].flatten(2).double(), expected, atol=1e-6)


def test_without_tokens_is_a_text_without_them():
    network = with_text()
    x, timestep, cond = given = inputs(network)
    before = network(*given)
    assert cond.text is not None
    masked = torch.zeros(2, TOKENS, dtype=torch.bool)
    masked[:, [2, 5]] = True
    shorter = Conditioning(2, cond.text[:, [0, 1, 3, 4, 6]])
    expected = network(x, timestep, shorter)
    found = changed(without_tokens(lambda _: masked))(network)(*given)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-5)
    assert torch.equal(network(*given), before)
    one = masked & torch.tensor([[False], [True]])  # of the second entry alone
    found = changed(without_tokens(lambda _: one))(network)(*given)
    assert torch.allclose(found[0], before[0], atol=1e-6)
    assert torch.allclose(found[1], expected[1], atol=1e-5)
    none = changed(without_tokens(lambda _: masked & False))(network)
    assert torch.equal(none(*given), before)


def test_another_text_for_cross_attention():
    network = with_text()
    x, timestep, cond = given = inputs(network)
    before = network(*given)
    assert cond.text is not None
    other = cond.text.flip(0, 1)
    found = changed(cross_attention_text(lambda _: other))(network)(*given)
    assert torch.equal(found, network(x, timestep, Conditioning(2, other)))
    back = changed(
        cross_attention_text(lambda own: torch.zeros_like(other) if own.text is None else own.text),
        conditions(lambda own: replace(own, text=other)),
    )
    assert torch.equal(back(network)(*given), before)
    assert torch.equal(network(*given), before)


def test_a_network_without_text():
    with pytest.raises(UndustError, match="cross-attention"):
        changed(without_tokens(lambda _: torch.zeros(1, 1)))(plain_unet())
