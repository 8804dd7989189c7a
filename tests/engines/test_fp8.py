"""8-bit floating-point products: on a CPU, where torch has the same operator as for GPUs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import undust
from undust.engines import fp8, registry
from undust.engines.fp8 import Fp8Linear, in_8_bits, quantize
from undust.networks.attention import Attention
from undust.networks.conditioning import Conditioning
from undust.networks.config import UNetConfig
from undust.networks.unet import UNet

PROMPTS = ["a smiling cat", "빨간 하트"]
STEP = 2**-4  # half the distance of two numbers with 3 bits of mantissa, over the smaller


@pytest.fixture
def network() -> UNet:
    torch.manual_seed(0)
    config = UNetConfig(
        sample_size=4,
        cross_attention_dim=256,
        attention_head_dim=4,
        block_out_channels=(32, 256),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    )
    return UNet(config).eval().requires_grad_(False)


def quantised_linear(layer: nn.Linear) -> nn.Module:
    """One layer of attention and feed-forward blocks, in 8 bits."""
    block = Attention(layer.in_features, heads=1).requires_grad_(False)
    block.to_out[0] = layer
    found = in_8_bits(block).to_out[0]
    assert type(found) is Fp8Linear
    return found


def error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def test_numbers_are_rounded_to_the_nearest():
    rows = torch.randn(64, 300) * torch.logspace(-6, 6, 64)[:, None]
    rows[7] = 0
    numbers, scales = quantize(rows)
    found = numbers.float() * scales
    # Below 2^-6 of e4m3 the steps are even: 2^-9.
    assert ((found - rows).abs() <= torch.maximum(rows.abs() * STEP, scales * 2**-10) * 1.001).all()
    assert found.abs().amax(1).allclose(rows.abs().amax(1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_a_layer_is_almost_the_same(dtype: torch.dtype, bias: bool):
    torch.manual_seed(0)
    layer = nn.Linear(256, 256, bias=bias).to(dtype).requires_grad_(False)
    x = torch.randn(2, 7, 256, dtype=dtype)
    found, expected = quantised_linear(copy.deepcopy(layer))(x), layer(x)
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    # Two roundings of at most 2^-4, evenly spread over intervals that are smaller on average.
    assert 0.01 < error(found.float(), expected.float()) < STEP
    assert quantised_linear(layer)(0 * x).allclose(layer(0 * x), rtol=2**-7)


@torch.inference_mode()
def test_a_picture_does_not_depend_on_its_batch():
    layer = quantised_linear(nn.Linear(256, 256).requires_grad_(False))
    x = torch.randn(3, 5, 256) * torch.tensor([1.0, 1e3, 1e-3]).view(3, 1, 1)
    for number in range(3):
        assert torch.equal(layer(x)[number], layer(x[number : number + 1])[0])


@torch.inference_mode()
def test_a_network_is_almost_the_same(network: UNet):
    fast = in_8_bits(network)
    given = (
        torch.randn(2, 4, 4, 4),
        torch.tensor([10, 900]),
        Conditioning(2, torch.randn(2, 7, 256)),
    )
    assert 0 < error(fast(*given), network(*given)) < 0.1
    kinds = {name: type(layer) for name, layer in fast.named_modules() if hasattr(layer, "bias")}
    attention = "mid_block.attentions.0.transformer_blocks.0"
    assert kinds[f"{attention}.attn1.to_k"] is kinds[f"{attention}.ff.net.2"] is Fp8Linear
    assert kinds[f"{attention}.attn2.to_q"] is Fp8Linear
    assert kinds[f"{attention}.attn2.to_k"] is nn.Linear  # of the text
    assert Fp8Linear not in map(type, network.modules())
    assert fast.conv_in.weight is network.conv_in.weight


def test_the_quantised_weight_takes_the_place_of_the_weight(network: UNet):
    fast, layers = in_8_bits(network), [*network.modules()]
    large = [
        before.weight
        for before, after in zip(layers, fast.modules(), strict=True)
        if isinstance(after, Fp8Linear) and isinstance(before, nn.Linear)
    ]
    sizes = [
        sum(tensor.nbytes for tensor in (*each.parameters(), *each.buffers()))
        for each in (network, fast)
    ]
    scales = sum(4 * len(weight) for weight in large)
    assert sizes[0] - sizes[1] == sum(3 * weight.numel() for weight in large) - scales


def test_what_gains_nothing_is_returned():
    narrow = Attention(64, heads=1).requires_grad_(False)
    assert in_8_bits(narrow) is narrow
    unet = undust.load("emoji", engine="torch").unet
    assert fp8.for_fp8(unet) is unet


def test_without_such_a_gpu_another_engine_is_used():
    with pytest.warns(RuntimeWarning, match="fp8 is not used: it is for GPUs, .* on a CPU; cpu"):
        assert undust.load("emoji", engine="fp8").engine == "cpu"
    if not torch.cuda.is_available():
        assert "no GPU" in fp8.missing()
        assert registry.ENGINES["fp8"].missing() == fp8.missing()


def test_pictures_are_almost_the_same(monkeypatch: pytest.MonkeyPatch):
    model = undust.load("emoji", engine="torch")
    monkeypatch.setattr(fp8, "MIN_WIDTH", 64)
    fast = model.with_network(in_8_bits)
    pairs = zip(*(each.generate(PROMPTS, steps=8, seed=1) for each in (model, fast)), strict=True)
    for one, other in pairs:
        squares = (np.asarray(one.image, float) - np.asarray(other.image, float)) ** 2
        assert 0 < squares.mean() < 255**2 * 10**-3  # PSNR of more than 30 dB


def test_products_are_those_of_the_numbers():
    torch.manual_seed(0)
    layer = quantised_linear(nn.Linear(256, 256, bias=False).requires_grad_(False))
    assert isinstance(layer, Fp8Linear)
    x = torch.randn(1, 9, 256)
    tokens, scales = quantize(x[0])
    weight = layer.quantized.float() * layer.scales.T
    expected = F.linear(tokens.float() * scales, weight)
    assert error(layer(x)[0], expected) < 2**-8  # bfloat16's rounding of the result
