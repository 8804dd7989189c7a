"""Weights of 16 bits in layers that compute in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import undust
from undust.cli import main
from undust.formats.recipe_png import read_recipe
from undust.latent import model as latent_model
from undust.networks.stored import (
    StoredConv2d,
    StoredConv3d,
    StoredLinear,
    computes_in,
    keep_stored,
)
from undust.networks.temporal import TemporalResnetBlock
from undust.pipeline import LatentDiffusion

STEPS = {"steps": 4, "seed": 1}


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3),
        nn.GroupNorm(2, 8),
        nn.Conv2d(8, 1024, 3, padding=1),
        nn.Flatten(2),
        nn.Linear(36, 2048),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_convolutions_over_frames_are_stored_too(dtype: torch.dtype):
    torch.manual_seed(0)
    blocks = [
        TemporalResnetBlock(160, groups=4, eps=1e-5, time_channels=None).to(dtype) for _ in range(2)
    ]
    blocks[1].load_state_dict(blocks[0].state_dict())
    keep_stored(blocks[1])
    for layer in (blocks[1].conv1, blocks[1].conv2):
        assert (type(layer), layer.weight.dtype) == (StoredConv3d, dtype)
        assert layer.bias is not None
        assert layer.bias.dtype == torch.float32
    assert computes_in(blocks[1]) == torch.float32
    x = torch.randn(2, 160, 3, 4, 4)
    assert torch.equal(blocks[1](x), blocks[0].float()(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_are_those_of_float32_weights(dtype: torch.dtype):
    network, x = small().to(dtype), torch.randn(2, 4, 8, 8)
    expected = small().to(dtype).float()(x)
    keep_stored(network)
    assert [type(each) for each in network][2::2] == [StoredConv2d, StoredLinear]
    assert {p.dtype for p in network.parameters() if p.ndim == 1} == {torch.float32}
    assert [layer.weight.dtype for layer in (network[0], network[2])] == [torch.float32, dtype]
    assert computes_in(network) == torch.float32
    assert torch.equal(network(x), expected)


def test_wide_weights_stay():
    network = small()
    before = [*network.parameters()]
    keep_stored(network)
    assert not any(isinstance(each, StoredConv2d | StoredLinear) for each in network)
    assert all(a is b for a, b in zip(before, network.parameters(), strict=True))


@pytest.fixture(scope="module")
def models() -> list[LatentDiffusion]:
    """The built-in model in engine torch, with weights of 32 and of 16 bits."""
    return [undust.load("emoji", engine="torch", low_memory=low) for low in (False, True)]


def stored_bytes(model: LatentDiffusion) -> int:
    return sum(tensor.nbytes for tensor in model.unet.parameters())


def test_pictures_are_the_same(models: list[LatentDiffusion]):
    wide, stored = models
    one, other = (each.generate("a smiling cat", **STEPS)[0] for each in models)
    assert stored_bytes(stored) < 0.6 * stored_bytes(wide)
    assert wide.dtype == stored.dtype == torch.float32
    assert torch.equal(one.latent, other.latent)
    assert (one.recipe.low_memory, other.recipe.low_memory) == (False, True)


@pytest.mark.parametrize("engine", ["cpu", "int8"])
@pytest.mark.filterwarnings("ignore:the engine int8 is not used")
def test_engines_compute_them(engine: str):
    latents = [
        undust.load("emoji", engine=engine, low_memory=low).generate("a cat", **STEPS)[0].latent
        for low in (False, True)
    ]
    assert (latents[0] - latents[1]).norm() < 1e-5 * latents[0].norm()


@pytest.mark.parametrize("merge", [True, False])
def test_loras_are_as_exact(merge: bool, tmp_path: Path):
    torch.manual_seed(0)
    weight = undust.load("emoji").unet.get_parameter("mid_block.resnets.0.conv1.weight")
    key = "unet.mid_block.resnets.0.conv1.lora"
    save_file(
        {
            f"{key}_A.weight": torch.randn(2, *weight.shape[1:]) / 40,
            f"{key}_B.weight": torch.randn(len(weight), 2, 1, 1) / 8,
        },
        tmp_path / "lora.safetensors",
    )
    options = {**STEPS, "loras": [tmp_path / "lora.safetensors"]}
    latents = [
        undust.load("emoji", engine="torch", merge_loras=merge, low_memory=low)
        .generate("a cat", **options)[0]
        .latent
        for low in (False, True)
    ]
    assert torch.equal(*latents)


@torch.no_grad()
def test_large_pictures_are_decoded_and_encoded_in_strips(models: list[LatentDiffusion]):
    networks = [model.autoencoder for model in models]
    layers = [*networks[1].modules()]
    assert any(isinstance(layer, StoredConv2d) for layer in layers)
    z, x = torch.randn(1, 16, 8, 8), torch.rand(1, 3, 64, 64)
    assert torch.equal(*(each.decode(z, streamed=True) for each in networks))
    assert torch.equal(*(each.encode(x, streamed=True).mean for each in networks))


def test_a_saved_model_has_the_same_weights(models: list[LatentDiffusion], tmp_path: Path):
    models[1].save(tmp_path / "model")
    again = undust.load(tmp_path / "model", engine="torch")
    for name, tensor in models[0].unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], tensor)


@pytest.mark.parametrize(("large", "low"), [(40_000_000, True), (2**30, False)])
def test_the_default_follows_the_size_of_the_files(
    large: int, low: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(latent_model, "LARGE_MODEL", large)
    assert undust.load("emoji").low_memory == low
    assert not undust.load("emoji", dtype="bf16").low_memory  # it computes in 16 bits already


def test_the_command_line_says_so_in_the_recipe(tmp_path: Path):
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    options = ("--steps", "2", "--seed", "1", "--low-memory", "--out", str(first))
    assert main(["generate", "a cat", *options]) == 0
    assert read_recipe(first)["low_memory"] is True
    assert main(["rerun", str(first), "--out", str(again)]) == 0
    assert first.read_bytes() == again.read_bytes()
