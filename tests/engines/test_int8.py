"""Layers in 8 bits: exact sums of quantised numbers, close to the layers they replace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import undust
from undust.engines import int8, probe
from undust.engines.int8 import Int8Conv2d, Int8Linear, for_int8, quantized, quantized_weight
from undust.networks.attention import Attention
from undust.networks.conditioning import Conditioning
from undust.networks.controlnet import from_unet
from undust.networks.unet import UNet, UNetConfig

pytestmark = pytest.mark.skipif(probe.int8_speedup() == 0, reason="no products of 8-bit integers")
SHAPES = [(3, 1, 1), (3, 2, 1), (3, 2, 0), (1, 1, 0)]  # kernel, stride, padding


def error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def convolution(kernel: int, stride: int, padding: int, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 96, kernel, stride, padding, dtype=dtype).requires_grad_(False)
    conv.__class__ = Int8Conv2d
    return conv


def linear() -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(64, 96).requires_grad_(False)
    layer.__class__ = Int8Linear
    return layer


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40), st.sampled_from([1, 2]))
def test_rounding_is_at_most_half_a_scale(values: list[float], rows: int):
    x = torch.tensor(values).repeat(rows, 1)
    integers, scales = quantized(x, 1)
    found = (integers.double() - int8.ZERO) * scales
    assert integers.min() >= 1
    assert (found - x).abs().max() <= scales.max() * 0.501


def test_a_weight_of_zeros_stays_zero():
    integers, scales = quantized_weight(torch.zeros(3, 4))
    assert integers.count_nonzero() == 0
    assert scales.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_convolution_of_the_integers_is_exact(shape: tuple[int, int, int]):
    conv, x = convolution(*shape), torch.randn(2, 64, 9, 7)
    (pixels, factors), (weight, scales) = quantized(x, 1), quantized_weight(conv.weight)
    sums = F.conv2d(pixels.double() - int8.ZERO, weight.double(), None, *shape[1:])
    expected = sums * factors * scales[:, None, None] + conv.bias[:, None, None]
    assert error(conv(x), expected) < 1e-6


def test_a_linear_layer_of_the_integers_is_exact():
    layer, x = linear(), torch.randn(2, 5, 64)
    (tokens, factors), (weight, scales) = quantized(x, 2), quantized_weight(layer.weight)
    sums = (tokens.double() - int8.ZERO) @ weight.double().T
    assert error(layer(x), sums * factors * scales + layer.bias) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_results_are_close(dtype: torch.dtype):
    x = torch.randn(2, 64, 8, 8, dtype=dtype)
    conv = convolution(3, 1, 1, dtype)
    found = conv(x)
    assert found.dtype == dtype
    assert error(found.float(), F.conv2d(x, conv.weight, conv.bias, 1, 1).float()) < 0.02
    layer, tokens = linear().to(dtype), torch.randn(2, 9, 64, dtype=dtype)
    assert error(layer(tokens).float(), F.linear(tokens, layer.weight, layer.bias).float()) < 0.02


def test_a_picture_does_not_depend_on_its_batch():
    x = torch.randn(3, 64, 8, 8) * torch.tensor([1.0, 1e3, 1e-3]).view(3, 1, 1, 1)
    conv, layer, tokens = convolution(3, 1, 1), linear(), x.flatten(2).transpose(1, 2)
    for number in range(3):
        one = slice(number, number + 1)
        assert torch.equal(conv(x)[one], conv(x[one]))
        assert torch.equal(layer(tokens)[one], layer(tokens[one]))


def test_vectors_are_not_quantised():
    layer, x = linear(), torch.randn(3, 64)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_a_changed_weight_is_quantised_again():
    conv, x = convolution(3, 1, 1), torch.randn(1, 64, 8, 8)
    first = conv(x) - conv.bias.view(-1, 1, 1)
    conv.weight.mul_(2)
    assert error(conv(x) - conv.bias.view(-1, 1, 1), 2 * first) < 1e-6


def test_gradients_are_those_of_the_layer():
    conv, x = convolution(3, 1, 1), torch.randn(1, 64, 8, 8, requires_grad=True)
    plain = F.conv2d(x, conv.weight, conv.bias, 1, 1)
    assert torch.equal(conv(x), plain)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_stays_so(value: float):
    x = torch.randn(2, 64, 8, 8)
    x[0, 3, 4, 5] = value
    found = convolution(3, 1, 1)(x)
    assert not found[0].isfinite().any()
    assert found[1].isfinite().all()


@pytest.fixture
def network() -> UNet:
    torch.manual_seed(0)
    config = UNetConfig(
        sample_size=8,
        cross_attention_dim=32,
        attention_head_dim=2,
        block_out_channels=(64, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
    )
    return UNet(config).eval().requires_grad_(False)


def test_layers_of_the_text_and_of_few_channels_stay(network: UNet):
    fast = for_int8(network)
    changed = {name for name, layer in fast.named_modules() if "Int8" in type(layer).__name__}
    assert not any(type(layer) is Int8Linear for layer in network.modules())
    assert {"down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.proj_in"} <= changed
    cross = [each for each in fast.modules() if isinstance(each, Attention)][1]
    assert (type(cross.to_q), type(cross.to_k)) == (Int8Linear, nn.Linear)
    assert not {"conv_in", "conv_out"} & changed


def test_outputs_of_a_network_and_its_controlnet_are_close(network: UNet):
    control = from_unet(network).requires_grad_(False)
    for zero in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        nn.init.normal_(zero.weight, std=0.1)
    x, time = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    cond, hint = Conditioning(2, torch.randn(2, 7, 32)), torch.rand(1, 3, 64, 64)
    exact = control(x, time, cond, hint)
    fast = for_int8(control)(x, time, cond, hint)
    assert all(0 < error(a, b) < 0.05 for a, b in zip(fast[1:], exact[1:], strict=True))
    expected = network(x, time, cond, control=exact)
    assert 0 < error(for_int8(network)(x, time, cond, control=exact), expected) < 0.05


def test_weights_are_shared_and_quantised_once(network: UNet):
    one, other = for_int8(network), for_int8(network)
    weights = [each.down_blocks[0].resnets[0].conv1.weight for each in (one, other, network)]
    assert weights[0] is weights[1] is weights[2]
    layer = one.mid_block.attentions[0].proj_in  # type: ignore[union-attr]
    x = torch.randn(1, 64, 4, 4)
    layer(x)
    known = int8._PACKED[layer.weight]
    other.mid_block.attentions[0].proj_in(x)  # type: ignore[union-attr]
    assert int8._PACKED[layer.weight] is known


def test_weights_in_8_bits_end_with_their_layer():
    before = len(int8._PACKED)
    layer = linear()
    layer(torch.randn(1, 2, 64))
    assert len(int8._PACKED) == before + 1
    del layer
    assert len(int8._PACKED) == before


def test_other_networks_are_returned():
    first_stage = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1))
    assert for_int8(first_stage) is first_stage


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_other_precisions_generate(dtype: str):
    model = undust.load("emoji", engine="int8", dtype=dtype)
    (picture,) = model.generate("a cat", steps=2, seed=1)
    assert (picture.recipe.engine, model.dtype.itemsize) == ("int8", 2)
    (exact,) = undust.load("emoji", engine="torch").generate("a cat", steps=2, seed=1)
    assert error(picture.latent, exact.latent) < 0.1


def test_pictures_are_almost_the_same():
    exact, fast = (undust.load("emoji", engine=engine) for engine in ("torch", "int8"))
    prompts = ["a smiling cat", "빨간 하트"]
    pairs = zip(*(model.generate(prompts, steps=8, seed=1) for model in (exact, fast)), strict=True)
    for one, other in pairs:
        squares = (np.asarray(one.image, float) - np.asarray(other.image, float)) ** 2
        assert 0 < squares.mean() < 255**2 * 10**-3  # PSNR of more than 30 dB
    assert other.recipe.engine == "int8"
