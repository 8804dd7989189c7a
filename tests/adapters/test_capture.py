"""Recorded attention against the layers' own queries and keys, and a network that never knows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from undust.adapters.capture import RecordedCall, recording
from undust.errors import UndustError
from undust.networks.attention import Attention
from undust.networks.conditioning import Conditioning
from undust.networks.config import DiTConfig, UNet2DConfig
from undust.networks.dit import DiT
from undust.networks.unet import UNet, UNet2D
from variants import build

pytestmark = pytest.mark.usefixtures("seeded")

TOKENS = 7


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def unet(request: pytest.FixtureRequest) -> UNet:
    network = build(request.param).unet
    assert isinstance(network, UNet)
    return network


def inputs(unet: UNet, batch: int, height: int = 8, width: int = 8) -> tuple[Any, ...]:
    config = unet.config
    wide = config.projection_class_embeddings_input_dim
    more = {}
    if wide:
        ids = config.addition_time_embed_dim or 0
        more = {"pooled": torch.randn(batch, wide - 6 * ids), "size_ids": torch.ones(batch, 6)}
    text = torch.randn(batch, TOKENS, config.at("cross_attention_dim", 0))
    x = torch.randn(batch, config.in_channels, height, width)
    return x, torch.full((batch,), 498.5), Conditioning(batch, text, **more)


def state(network: nn.Module) -> dict[str, Any]:
    """Everything of a network's modules but their weights."""
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return {
        name: (type(module), *(len(getattr(module, each)) for each in hooks))
        for name, module in network.named_modules()
    }


def expected(unet: UNet, given: tuple[Any, ...]) -> dict[str, Tensor]:
    """softmax(q·kᵀ/√d) from the outputs of `to_q` and `to_k`, head by head in float64."""
    found: dict[str, Tensor] = {}
    watched = copy.deepcopy(unet)
    for name, module in watched.named_modules():
        if isinstance(module, Attention):
            for part in ("to_q", "to_k"):

                def keep(_m: object, _i: object, output: Tensor, key: str = f"{name}.{part}"):
                    found[key] = output.double()

                getattr(module, part).register_forward_hook(keep)
    watched(*given)
    maps: dict[str, Tensor] = {}
    for name, module in watched.named_modules():
        if not isinstance(module, Attention) or not name.endswith("attn2"):
            continue
        q, k = found[f"{name}.to_q"], found[f"{name}.to_k"]
        side = q.shape[2] // module.heads
        heads = []
        for head in range(module.heads):
            own = slice(head * side, (head + 1) * side)
            scores = torch.einsum("bnd,btd->bnt", q[..., own], k[..., own]) / side**0.5
            heads.append(scores.exp() / scores.exp().sum(-1, keepdim=True))
        maps[name] = torch.stack(heads).mean(0)
    return maps


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (5, 7)], ids=str)
def test_probabilities_are_those_of_queries_and_keys(unet: UNet, size: tuple[int, int]):
    given = inputs(unet, 3, *size)
    calls: list[RecordedCall] = []
    output = recording(unet, lambda _: [2, 0], calls.append)(*given)
    (call,), own = calls, expected(unet, given)
    assert call.attention.keys() == own.keys()
    assert len(own) > 2
    for name, found in call.attention.items():
        halves = 1 if name.startswith(("down", "up")) else 2
        grid = tuple(-(-side // halves) for side in size)
        assert found.shape == (2, *grid, TOKENS)
        assert torch.allclose(found.sum(-1), torch.ones(2, *grid), atol=1e-5)
        assert torch.allclose(found.flatten(1, 2).double(), own[name][[2, 0]], atol=1e-6)
    assert torch.equal(call.output, output)
    assert torch.equal(call.x, given[0])
    assert call.cond is given[2]
    assert [*call.entries] == [2, 0]


def test_the_network_is_the_same_before_during_and_after(unet: UNet):
    given, before = inputs(unet, 2), state(unet)
    plain = unet(*given)
    recorded = recording(unet, lambda _: [1], lambda _: None)
    assert torch.equal(recorded(*given), plain)
    assert torch.equal(unet(*given), plain)
    assert state(unet) == before
    own, theirs = dict(unet.named_parameters()), dict(recorded.named_parameters())
    assert all(theirs[name] is weight for name, weight in own.items())


def test_nothing_is_recorded_for_no_entries(unet: UNet):
    calls: list[RecordedCall] = []
    recording(unet, lambda _: [], calls.append)(*inputs(unet, 1))
    assert [dict(call.attention) for call in calls] == [{}]


def test_a_call_that_fails_is_not_reported(unet: UNet):
    given, calls = inputs(unet, 1), []
    recorded = recording(unet, lambda _: [0], calls.append)
    x, timestep, cond = given
    with pytest.raises(RuntimeError):
        recorded(x[:, :, :, :0], timestep, cond)
    assert calls == []
    recorded(*given)
    assert len(calls) == 1
    assert torch.equal(calls[0].output, unet(*given))


@pytest.mark.parametrize(
    "network",
    [
        lambda: UNet2D(
            UNet2DConfig(
                in_channels=4,
                out_channels=4,
                block_out_channels=(8, 16),
                down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
                layers_per_block=1,
                norm_num_groups=4,
            )
        ),
        lambda: DiT(DiTConfig(sample_size=8, num_layers=1)),
    ],
)
def test_networks_without_words(network: Any):
    with pytest.raises(UndustError, match="attention to words"):
        recording(network(), lambda _: [0], lambda _: None)
