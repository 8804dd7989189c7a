"""Networks on a simulated GPU: what is copied there, in which order, and how often."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import undust
from elsewhere import Device
from undust.adapters.offload import Offload
from undust.engines import registry
from undust.engines.gpu import for_gpu
from undust.engines.texts import CachedCrossAttention
from undust.latent.denoiser import PlacedNetwork
from undust.networks.conditioning import Conditioning
from undust.networks.config import UNetConfig
from undust.networks.unet import UNet
from variants import build


@pytest.fixture
def network() -> UNet:
    torch.manual_seed(0)
    config = UNetConfig(
        sample_size=8,
        cross_attention_dim=16,
        attention_head_dim=2,
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
    )
    return UNet(config).eval().requires_grad_(False)


def calls(network: UNet) -> list[int]:
    """Counts the calls of a layer of the text."""
    counted: list[int] = []
    for name, layer in network.named_modules():
        if name.endswith("mid_block.attentions.0.transformer_blocks.0.attn2.to_k"):
            layer.register_forward_hook(lambda *_: counted.append(1))
    return counted


@torch.inference_mode()
def test_a_text_is_read_once(network: UNet):
    cond = Conditioning(2, torch.randn(2, 7, 16))
    times, x = torch.tensor([10, 900]), torch.randn(2, 4, 8, 8)
    expected = network(x, times, cond)
    with Device():
        fast = for_gpu(network)
        placed = PlacedNetwork(fast, Offload(torch.device("cuda:0")))
        counted = calls(fast)
        assert all((placed(x, times, cond) - expected).norm() < 1e-5 for _ in range(3))
        assert len(counted) == 1
        placed(x, times, Conditioning(2, torch.randn(2, 7, 16)))
        assert len(counted) == 2


@torch.inference_mode()
def test_a_condition_is_copied_once(network: UNet):
    seen: list[torch.Tensor] = []
    cond, x = Conditioning(1, torch.randn(1, 7, 16)), torch.randn(1, 4, 8, 8)
    network.register_forward_pre_hook(lambda _, args: seen.append(args[2].text))
    with Device() as device:
        placed = PlacedNetwork(network, Offload(torch.device("cuda:0")))
        for time in (900, 500):
            placed(x, torch.tensor([time]), cond)
        assert seen[0] is seen[1]
        placed(x, torch.tensor([100]), Conditioning(1, cond.text + 1))
        assert torch.equal(seen[2].cpu(), cond.text + 1)
        seen.clear()
        assert len(placed._conditions) == 1  # those of ended runs are gone
        assert device.used > 0


@torch.inference_mode()
def test_kernels_lie_in_channels_last(network: UNet):
    with Device():
        offload = Offload(torch.device("cuda:0"))
        form = {"memory_format": torch.channels_last}
        offload.run(network, lambda: None)
        assert network.conv_in.weight.device.type == "cuda"
        assert network.conv_in.weight.is_contiguous(**form)
        offload.clear()
    assert network.conv_in.weight.device.type == "cpu"
    assert network.conv_in.weight.is_contiguous()


def test_auto_is_the_exact_one_of_the_device(tmp_path: Path):
    build("sd1").save(tmp_path / "sd1")
    expected = undust.load(tmp_path / "sd1").generate("a cat", seed=1, steps=2, size=32)[0]
    with Device():
        model = undust.load(tmp_path / "sd1", device="cuda:0")
        assert model.engine == "gpu"
        (picture,) = model.generate("a cat", seed=1, steps=2, size=32)
    assert picture.recipe.engine == "gpu"
    assert (picture.latent - expected.latent).norm() < 1e-4 * expected.latent.norm()
    with pytest.warns(RuntimeWarning, match="gpu is not used: it is for GPUs, .* on a CPU; "):
        undust.load(tmp_path / "sd1").rerun(picture.recipe)


def test_engines_of_the_cpu_give_way(network: UNet):
    with pytest.warns(RuntimeWarning, match="int8 is not used: it is for CPUs, .* on a GPU; gpu"):
        assert registry.chosen("int8", [network], torch.device("cuda:0")).name == "gpu"


def test_networks_without_a_text_stay():
    first_stage = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3))
    assert for_gpu(first_stage) is first_stage
    assert registry.chosen("auto", [first_stage], torch.device("cuda:0")).name == "torch"


def test_the_network_itself_keeps_its_layers(network: UNet):
    fast = for_gpu(network)
    assert any(isinstance(each, CachedCrossAttention) for each in fast.modules())
    assert not any(isinstance(each, CachedCrossAttention) for each in network.modules())
    ours, theirs = fast.parameters(), network.parameters()
    assert all(a is b for a, b in zip(ours, theirs, strict=True))
