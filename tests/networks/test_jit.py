"""JiT against the equations of its paper, and its conditions."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.nn import functional as F

from undust.errors import UndustError
from undust.formats.components import load_component, save_component
from undust.networks.base import DenoiserNetwork
from undust.networks.conditioning import Conditioning
from undust.networks.config import JiTConfig
from undust.networks.jit import JiT, RotaryPositions

TINY = {
    "sample_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_layers": 3,
    "num_attention_heads": 2,
    "bottleneck_dim": 6,
}
LABELLED = {**TINY, "num_classes": 3, "in_context_len": 5, "in_context_start": 1}
PLAIN = {**TINY, "in_context_start": 0}


def inputs(width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 16, width), torch.tensor([20.0, 900.0])


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def places(n: int, m: int, channels: int) -> torch.Tensor:
    """Sine and cosine of column, then of row, at rates from 1 to 1e-4, by their definition."""
    rates = torch.tensor([1e4 ** (-4 * i / channels) for i in range(channels // 4)])
    rows = [
        torch.cat([f(place * rates) for place in (col, row) for f in (torch.sin, torch.cos)])
        for row in range(n)
        for col in range(m)
    ]
    return torch.stack(rows)


def rotated(x: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Pairs of channels of [B,N,heads,d] as complex numbers, turned by row and by column."""
    d = x.shape[-1]
    rates = [1e4 ** (-2 * i / (d // 2)) for i in range(d // 4)]
    turns = torch.tensor(
        [
            [place * rate for place in (row, col) for rate in rates]
            for row in range(n)
            for col in range(m)
        ]
    )
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.exp(1j * turns)[:, None]).flatten(-2)


def by_the_paper(w: dict[str, torch.Tensor], x, timestep, label, n: int, m: int) -> torch.Tensor:
    """The network of LABELLED or PLAIN, from its weights and the paper's description."""
    rates = torch.exp(-math.log(1e4) * torch.arange(128) / 128)
    waves = torch.cat([f(timestep[:, None] * rates) for f in (torch.cos, torch.sin)], -1)
    hidden = F.silu(waves @ w["t_embedder.mlp.0.weight"].T + w["t_embedder.mlp.0.bias"])
    c = hidden @ w["t_embedder.mlp.2.weight"].T + w["t_embedder.mlp.2.bias"]
    if label is not None:
        y = w["y_embedder.embedding_table.weight"][label]
        c = c + y
    patches = F.unfold(x, 4, stride=4).transpose(1, 2)
    first = patches @ w["x_embedder.proj1.weight"].flatten(1).T
    h = first @ w["x_embedder.proj2.weight"].flatten(1).T + w["x_embedder.proj2.bias"]
    h = h + places(n, m, 32)
    for i in range(3):
        if label is not None and i == 1:
            h = torch.cat([y[:, None] + w["in_context_posemb"], h], 1)
        b = {name.removeprefix(f"blocks.{i}."): each for name, each in w.items()}
        six = F.silu(c) @ b["adaLN_modulation.1.weight"].T + b["adaLN_modulation.1.bias"]
        shift, scale, gate, shift2, scale2, gate2 = six[:, None].chunk(6, -1)
        a = rms(h, b["norm1.weight"]) * (1 + scale) + shift
        q, k, v = (
            (a @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]).unflatten(-1, (3, 2, 16)).unbind(2)
        )
        q, k = rms(q, b["attn.q_norm.weight"]), rms(k, b["attn.k_norm.weight"])
        own = h.shape[1] - n * m  # tokens of the class have no place
        q, k = (torch.cat([t[:, :own], rotated(t[:, own:], n, m)], 1) for t in (q, k))
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k) / 4
        mixed = torch.einsum("bhnm,bmhd->bnhd", weights.softmax(-1), v).flatten(2)
        h = h + gate * (mixed @ b["attn.proj.weight"].T + b["attn.proj.bias"])
        f = rms(h, b["norm2.weight"]) * (1 + scale2) + shift2
        one, two = (f @ b["mlp.w12.weight"].T + b["mlp.w12.bias"]).chunk(2, -1)
        h = h + gate2 * ((F.silu(one) * two) @ b["mlp.w3.weight"].T + b["mlp.w3.bias"])
    e = {name.removeprefix("final_layer."): each for name, each in w.items()}
    two = F.silu(c) @ e["adaLN_modulation.1.weight"].T + e["adaLN_modulation.1.bias"]
    shift, scale = two[:, None].chunk(2, -1)
    h = rms(h[:, -n * m :], e["norm_final.weight"]) * (1 + scale) + shift
    out = h @ e["linear.weight"].T + e["linear.bias"]
    out = out.unflatten(-1, (16, 3)).permute(0, 3, 2, 1).flatten(1, 2)
    return F.fold(out, (4 * n, 4 * m), 4, stride=4)


def test_it_is_the_papers_network(shake, assert_close) -> None:
    for config, label in ((LABELLED, torch.tensor([1, 3])), (PLAIN, None)):
        network = JiT(JiTConfig.read(config))
        shake(network)
        x, timestep = inputs()
        expected = by_the_paper(network.state_dict(), x, timestep, label, 4, 4)
        assert_close(network(x, timestep, Conditioning(2, label=label)), expected)


@pytest.mark.parametrize(
    ("width", "layers", "heads", "bottleneck", "start", "millions"),
    [(768, 12, 12, 128, 4, 131), (1024, 24, 16, 128, 8, 459), (1280, 32, 16, 256, 10, 953)],
)
def test_its_sizes_are_the_papers(width, layers, heads, bottleneck, start, millions) -> None:
    """JiT-B/16, L/16 and H/16 for ImageNet (table 9), without the places, which are computed."""
    config = JiTConfig(
        hidden_size=width,
        num_layers=layers,
        num_attention_heads=heads,
        bottleneck_dim=bottleneck,
        num_classes=1000,
    )
    assert config.in_context_start == start
    with torch.device("meta"):
        network = JiT(config)
    assert round(sum(each.numel() for each in network.parameters()) / 1e6) == millions


def test_attention_depends_on_relative_places() -> None:
    x = torch.randn(1, 16, 2, 16)
    rotate = RotaryPositions((4, 4), 16, (1.0, 1.0), x)
    same = x[:, :1].expand(1, 16, 2, 16)
    q, k = rotate(same), rotate(same)
    scores = torch.einsum("bnhd,bmhd->nm", q, k)
    for row, col in ((0, 1), (1, 0), (1, 2)):
        shift = 4 * row + col
        inside = [n for n in range(16 - shift) if n % 4 + col < 4 and n // 4 + row < 4]
        pairs = torch.stack([scores[n, n + shift] for n in inside])
        assert torch.allclose(pairs, pairs[0].expand_as(pairs), atol=1e-4)


def test_text_is_read_and_repeated_text_changes_nothing(shake, assert_close) -> None:
    network = JiT(JiTConfig.read({**LABELLED, "text_channels": 12}))
    shake(network)
    (x, timestep), text = inputs(24), torch.randn(2, 7, 12)
    label = torch.tensor([0, 1])
    both = network(x, timestep, Conditioning(2, text, label=label))
    assert_close(network(x, timestep, Conditioning(2, text.repeat(1, 2, 1), label=label)), both)
    other = network(x, timestep, Conditioning(2, text.flip(0), label=label))
    assert (other - both).abs().max() > 1e-3
    unlabelled = network(x, timestep, Conditioning(2, text))
    null = network(x, timestep, Conditioning(2, text, label=torch.tensor([3, 3])))
    assert torch.equal(unlabelled, null)
    assert (unlabelled - both).abs().max() > 1e-3


def test_training_starts_at_zero_with_identities() -> None:
    network = JiT(JiTConfig.read({**LABELLED, "text_channels": 12}))
    network.start_at_zero()
    (x, timestep), cond = inputs(), Conditioning(2, torch.randn(2, 7, 12))
    assert network(x, timestep, cond).abs().max() == 0
    tokens = torch.randn(2, 16, 32)
    rotate = RotaryPositions((4, 4), 16, (1.0, 1.0), tokens)
    assert torch.equal(network.blocks[0](tokens, torch.randn(2, 1, 32), rotate, cond.text), tokens)
    with torch.enable_grad():
        network(x, timestep, cond).sum().backward()
    assert network.final_layer.linear.weight.grad.abs().max() > 0


def test_a_saved_folder_says_what_it_is(tmp_path, shake) -> None:
    network = JiT(JiTConfig.read(LABELLED))
    shake(network)
    save_component(tmp_path, network)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["_class_name"] == "JiTTransformer2DModel"
    assert "Li & He 2025" in fields["_about"]
    again = load_component(tmp_path, DenoiserNetwork)
    assert again.config == network.config
    x, timestep = inputs()
    assert torch.equal(again(x, timestep, Conditioning(2)), network(x, timestep, Conditioning(2)))


def test_errors_name_what_is_missing_or_does_not_fit() -> None:
    network = JiT(JiTConfig.read({**LABELLED, "text_channels": 12}))
    (x, timestep), cond = inputs(), Conditioning(2, torch.randn(2, 7, 12))
    with pytest.raises(UndustError, match="needs text"):
        network(x, timestep, Conditioning(2))
    with pytest.raises(UndustError, match="class labels are 0 to 3, not 4"):
        network(x, timestep, Conditioning(2, cond.text, label=torch.tensor([0, 4])))
    with pytest.raises(UndustError, match="divisible by 4, its patch, not 15×16"):
        network(x[..., :15], timestep, cond)
    with pytest.raises(UndustError, match="neither perturbed attention"):
        network(x, timestep, cond, perturbed=(None, lambda q, k, v, **_: v))
    for fields, message in (
        ({"hidden_size": 36}, "divisible by 4 · num_attention_heads"),
        ({"in_context_start": 3}, "in_context_start has to be below num_layers"),
        ({"sample_size": 18}, "that patch_size divides"),
    ):
        with pytest.raises(UndustError, match=message):
            JiTConfig.read({**TINY, **fields})
