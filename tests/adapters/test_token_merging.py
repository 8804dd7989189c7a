"""Token merging against the paper's steps in plain loops, and the layers that it concerns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from undust.adapters.token_merging import Merge, MergingAttention, MergingNetworks, attentions
from undust.errors import UndustError
from undust.networks.attention import Attention
from undust.networks.conditioning import Conditioning
from undust.networks.config import DiTConfig, UNet2DConfig, UNetConfig
from undust.networks.dit import DiT
from undust.networks.unet import AnyUNet, UNet, UNet2D

FIELDS = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
PLAIN = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        yield


def published(
    tokens: Tensor, shape: tuple[int, int], ratio: float
) -> tuple[list[list[int]], list[int]]:
    """For one picture [N,C] the groups of tokens that become one, and the group of each token."""
    height, width = shape
    cells = [y % 2 == 0 and x % 2 == 0 for y in range(height) for x in range(width)]
    destinations = [k for k, first in enumerate(cells) if first]
    sources = [k for k, first in enumerate(cells) if not first]

    def alike(a: int, b: int) -> float:
        return float(tokens[a] @ tokens[b] / (tokens[a].norm() * tokens[b].norm()))

    best = {k: max(destinations, key=lambda other, k=k: alike(k, other)) for k in sources}
    ranked = sorted(sources, key=lambda k: -alike(k, best[k]))
    count = min(int(len(cells) * ratio), len(sources))
    groups = [[k] for k in ranked[count:]]
    groups += [[k, *(j for j in ranked[:count] if best[j] == k)] for k in destinations]
    place = {k: number for number, group in enumerate(groups) for k in group}
    return groups, [place[k] for k in range(len(cells))]


@pytest.mark.parametrize("shape", [(4, 6), (5, 3), (2, 2), (1, 7)], ids=str)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75])
def test_it_is_the_published_matching(shape: tuple[int, int], ratio: float):
    x = torch.randn(3, shape[0] * shape[1], 5)
    merge = Merge(x, shape, ratio)
    merged = merge(x)
    changed = torch.randn_like(merged)
    for k, picture in enumerate(x):
        groups, places = published(picture, shape, ratio)
        means = torch.stack([picture[group].mean(0) for group in groups])
        torch.testing.assert_close(merged[k], means)
        assert torch.equal(merge.undone(changed)[k], changed[k][places])


def test_a_picture_does_not_depend_on_its_batch():
    x = torch.randn(3, 24, 5)
    together = Merge(x, (4, 6), 0.4)
    for k, row in enumerate(x.split(1)):
        torch.testing.assert_close(together(x)[k : k + 1], Merge(row, (4, 6), 0.4)(row))


def unet(kind: str = "text", **changes) -> AnyUNet:
    made = (
        UNet(UNetConfig(**{**FIELDS, **changes}))
        if kind == "text"
        else UNet2D(UNet2DConfig(**{**PLAIN, **changes}))
    )
    return made.eval()


def inputs(network: AnyUNet) -> tuple[Tensor, Tensor, Conditioning]:
    text = torch.randn(2, 5, 12) if isinstance(network, UNet) else None
    return torch.randn(2, 4, 12, 8), torch.tensor([3.0, 700.0]), Conditioning(2, text)


@pytest.mark.parametrize(
    ("kind", "merging"),
    [
        ("text", {"down_blocks.1", "up_blocks.1"}),  # of three levels the first has no attention
        ("plain", {"down_blocks.0", "up_blocks.1"}),
    ],
)
def test_the_highest_resolution_merges(kind: str, merging: set[str]):
    """Self-attention of its layers, and no other layer; the network itself is as it was."""
    network = unet(kind)
    given = inputs(network)
    before = network(*given)
    copied = MergingNetworks()(network, 0.5)
    sizes: dict[str, int] = {}
    for name, layer in copied.named_modules():
        if isinstance(layer, Attention):

            def seen(_: nn.Module, q: tuple[Tensor], name: str = name) -> None:
                sizes[name] = q[0].shape[1]

            layer.to_q.register_forward_pre_hook(seen)
    fewer = copied(*given)
    changed = {
        name for name, layer in copied.named_modules() if isinstance(layer, MergingAttention)
    }
    assert {".".join(name.split(".")[:2]) for name in changed} == merging
    assert not any(name.endswith("attn2") for name in changed)
    tokens = 24 if kind == "text" else 96
    assert {sizes[name] for name in changed} == {tokens // 2}
    assert not torch.allclose(fewer, before, atol=1e-4)
    assert torch.equal(network(*given), before)
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    assert {parameter.data_ptr() for parameter in copied.parameters()} == weights


@pytest.mark.parametrize("kind", ["text", "plain"])
def test_attention_is_over_the_merged_tokens(kind: str):
    """A layer agrees with its own attention between the reference's merging and its end."""
    network = unet(kind)
    layer = attentions(network)[0]
    copied = attentions(MergingNetworks()(network, 0.5))[0]
    own = layer.blocks[0].attn1 if kind == "text" else layer
    seen: list[Tensor] = []
    if kind == "text":
        x = torch.randn(1, 16, 6, 4)
        found = copied.blocks[0].attn1
        found.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        outputs: list[Tensor] = []
        found.register_forward_hook(lambda _, given, output: outputs.append(output))
        copied(x, torch.randn(1, 5, 12))
        (tokens,), (output,) = seen, outputs
    else:
        x = torch.randn(1, 8, 6, 4)
        tokens = layer.group_norm(x).flatten(2).transpose(1, 2)
        output = (copied(x) - x).flatten(2).transpose(1, 2)
    groups, places = published(tokens[0], (6, 4), 0.5)
    means = torch.stack([tokens[0][group].mean(0) for group in groups])[None]
    expected = Attention.forward(own, means)[:, places]
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_layers_of_cross_attention_alone_stay():
    network = unet(only_cross_attention=(False, True, False))
    copied = MergingNetworks()(network, 0.5)
    changed = {
        name for name, layer in copied.named_modules() if isinstance(layer, MergingAttention)
    }
    assert {name.split(".")[1] for name in changed} == {"2", "0"}


def test_copies_are_made_once():
    network, other, merging = unet(), unet(), MergingNetworks()
    assert merging(network, 0.0) is network
    half = merging(network, 0.5)
    assert merging(network, 0.5) is half
    assert merging(other, 0.5) is not half
    assert merging(network, 0.25) is not half


def test_networks_that_have_nothing_to_merge():
    dit = DiT(DiTConfig(num_attention_heads=2, attention_head_dim=8, num_layers=1))
    with pytest.raises(UndustError, match=r"^token_merging: it is for U-Nets, .* has a DiT$"):
        MergingNetworks()(dit, 0.5)
    plain = unet("plain", down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    with pytest.raises(UndustError, match="no self-attention beside its middle"):
        MergingNetworks()(plain, 0.5)
