"""Convolutions by Winograd's algorithm: those of PyTorch, in float32's precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from undust.adapters.applied_loras import shared
from undust.engines import winograd
from undust.engines.winograd import (
    MIN_CHANNELS,
    MIN_TRAINED_CHANNELS,
    SIZES,
    WinogradConv2d,
    WinogradConvolution,
    can_gain,
    convolve,
    matrices,
    replace_convolutions,
    tile_size,
    transformed,
)

WIDE = MIN_CHANNELS
of_any_size = given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    filters=st.integers(1, 5),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    m=st.sampled_from(SIZES),
    bias=st.booleans(),
)


def apart(a: Tensor, b: Tensor) -> float:
    """The distance relative to b."""
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("m", SIZES)
def test_the_matrices_compute_a_correlation(m: int):
    a, g, b = matrices(m)
    torch.manual_seed(0)
    pixels, kernel = torch.randn(2, m + 2).double(), torch.randn(3).double()
    found = (a @ ((g @ kernel)[:, None] * (b @ pixels.T))).T
    expected = pixels.unfold(1, 3, 1) @ kernel
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@of_any_size
def test_any_size_is_convolved(
    batch: int, channels: int, filters: int, height: int, width: int, m: int, bias: bool
):
    torch.manual_seed(height * 61 + width)
    x, weight = torch.randn(batch, channels, height, width), torch.randn(filters, channels, 3, 3)
    shift = torch.randn(filters) if bias else None
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    expected += 0 if shift is None else shift.double()[:, None, None]
    found = convolve(x, transformed(weight, m), shift)
    assert found.shape == expected.shape
    assert apart(found.double(), expected) < 3e-6


@of_any_size
def test_gradients_of_any_size(
    batch: int, channels: int, filters: int, height: int, width: int, m: int, bias: bool
):
    torch.manual_seed(height * 61 + width)
    x, weight = torch.randn(batch, channels, height, width), torch.randn(filters, channels, 3, 3)
    inputs = [x, weight, *([torch.randn(filters)] if bias else [])]
    for each in inputs:
        each.requires_grad_()
    wide = [each.detach().double().requires_grad_() for each in inputs]
    slope = torch.randn(batch, filters, height, width)
    found = WinogradConvolution.apply(*inputs[:2], inputs[2] if bias else None, m)
    expected = F.conv2d(*wide, padding=1)
    pairs = zip(
        torch.autograd.grad(found, inputs, slope),
        torch.autograd.grad(expected, wide, slope.double()),
        strict=True,
    )
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        assert apart(ours.double(), theirs) < 1e-5


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_wanted_gradients_are_computed(wanted: tuple[int, ...]):
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 8, 8), torch.randn(3, 2, 3, 3), torch.randn(3)]
    for number in wanted:
        inputs[number].requires_grad_()
    asked = [inputs[number] for number in wanted]
    found = torch.autograd.grad(WinogradConvolution.apply(*inputs, 4).square().sum(), asked)
    expected = torch.autograd.grad(F.conv2d(*inputs, padding=1).square().sum(), asked)
    assert all(apart(a, b) < 1e-5 for a, b in zip(found, expected, strict=True))


def test_gradients_of_gradients_are_direct():
    """As a penalty on a gradient's norm needs them."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 8, 8), torch.randn(3, 2, 3, 3), torch.randn(3)]
    for each in inputs:
        each.requires_grad_()

    def penalty(output: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(output.tanh().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), inputs)

    pairs = zip(
        penalty(WinogradConvolution.apply(*inputs, 4)),
        penalty(F.conv2d(*inputs, padding=1)),
        strict=True,
    )
    assert all(apart(a, b) < 1e-5 for a, b in pairs)


def test_the_error_is_a_few_roundings_of_float32():
    """As many channels as Stable Diffusion has; compared with float64."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 640, 16, 16), torch.randn(64, 640, 3, 3)
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    errors = [apart(convolve(x, transformed(weight, m), None).double(), expected) for m in SIZES]
    assert errors[0] < 1e-6 and errors[1] < 4e-6


@pytest.mark.parametrize(("side", "m"), [(64, 4), (8, 2)])
def test_many_tiles_are_large_ones(side: int, m: int):
    assert tile_size(torch.empty(2, WIDE, side, side), torch.empty(WIDE, WIDE, 3, 3)) == m
    assert tile_size(torch.empty(2, 3, side, side), torch.empty(WIDE, 3, 3, 3)) == 0


def test_large_kernels_are_direct_on_small_pictures():
    kernels = torch.empty(640, 640, 3, 3)
    assert [tile_size(torch.empty(1, 640, side, side), kernels) for side in (4, 8)] == [0, 2]
    assert tile_size(torch.empty(1, WIDE, 1, 1), torch.empty(WIDE, WIDE, 3, 3)) == 2


@torch.no_grad()
def test_the_size_of_the_last_picture_makes_no_difference(monkeypatch: pytest.MonkeyPatch):
    """It changes the order of the weight in memory."""
    monkeypatch.setattr(winograd, "KEPT", 0)
    conv = nn.Conv2d(WIDE, WIDE, 3, padding=1)
    replace_convolutions(fast := nn.Sequential(conv))
    small, large = torch.randn(1, WIDE, 3, 3), torch.randn(1, WIDE, 12, 12)
    first = [fast(each) for each in (small, large)]
    for _ in range(2):
        for each, expected in zip((small, large), first, strict=True):
            assert torch.equal(fast(each), expected)


class Network(nn.Module):
    """Convolutions of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDE, 3, padding=1)
        self.wide = nn.Conv2d(WIDE, WIDE, 3, padding=1)
        self.step = nn.Conv2d(WIDE, WIDE, 3, padding=1, stride=2)
        self.point = nn.Conv2d(WIDE, WIDE, 1)
        self.groups = nn.Conv2d(WIDE, WIDE, 3, padding=1, groups=2)
        self.last = nn.Conv2d(WIDE, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] → [B,4,H/2,W/2]."""
        for layer in self.children():
            x = layer(x)
        return x


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval().requires_grad_(False)


def replaced(network: nn.Module) -> set[str]:
    return {name for name, each in network.named_modules() if isinstance(each, WinogradConv2d)}


def with_winograd(network: Network) -> Any:
    fast = shared(network)
    assert can_gain(fast)
    replace_convolutions(fast)
    return fast


def test_convolutions_with_stride_1_are_replaced(network: Network):
    fast = with_winograd(network)
    assert replaced(fast) == {"first", "wide", "last"} and not replaced(network)
    x = torch.randn(2, 3, 13, 18)
    assert apart(fast(x), network(x)) < 1e-5
    assert not torch.equal(fast(x), network(x))


@torch.no_grad()
def test_large_kernels_are_not_kept(network: Network, monkeypatch: pytest.MonkeyPatch):
    """Their weights are stored in another order, with the same values."""
    kept, x = with_winograd(network), torch.randn(1, 3, 8, 8)
    expected, weight = network(x), network.wide.weight.clone()
    found = kept(x)
    assert kept.wide._kept is not None and network.wide.weight.is_contiguous()
    monkeypatch.setattr(winograd, "KEPT", 0)
    made = with_winograd(network)
    for _ in range(2):
        assert torch.equal(made(x), found)
    assert made.wide._kept is None
    assert network.wide.weight.permute(2, 3, 1, 0).is_contiguous()
    assert torch.equal(network.wide.weight, weight) and apart(network(x), expected) < 1e-6


def test_other_precisions_and_small_networks_are_left_alone(network: Network):
    half = copy.deepcopy(network).bfloat16()
    small = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1))
    for each in (half, small):
        assert not can_gain(each)
    replace_convolutions(half)
    assert not replaced(half)


def test_a_hook_on_a_convolution_is_kept(network: Network):
    """A LoRA that is not merged is one."""
    network.wide.register_forward_hook(lambda _, inputs, output: output + inputs[0])
    x = torch.randn(1, 3, 8, 8)
    assert apart(with_winograd(network)(x), network(x)) < 1e-5


def test_gradients_are_those_of_the_network(network: Network):
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    found, expected = (
        torch.autograd.grad(each(x).square().sum(), x)[0]
        for each in (with_winograd(network), network)
    )
    assert apart(found, expected) < 1e-5


@pytest.mark.parametrize("kept", [0, 2**24])
@pytest.mark.parametrize("side", [3, 8])
def test_a_trained_weight_stays_where_it_is(
    network: Network, kept: int, side: int, monkeypatch: pytest.MonkeyPatch
):
    """The optimizer has the same memory; and a kept transformed one would be of use once."""
    monkeypatch.setattr(winograd, "KEPT", kept)
    fast, x = with_winograd(network.requires_grad_()), torch.randn(1, 3, side, side)
    places = [weight.data_ptr() for weight in network.parameters()]
    fast(x).sum().backward()
    with torch.no_grad():
        assert apart(fast(x), network(x)) < 1e-5
    assert [weight.data_ptr() for weight in network.parameters()] == places
    assert all(weight.is_contiguous() for weight in network.parameters())
    assert fast.wide._kept is None


def test_narrower_ones_are_trained_so():
    x, narrow = torch.empty(2, 64, 64, 64), MIN_TRAINED_CHANNELS
    assert tile_size(x, torch.empty(narrow, narrow, 3, 3), learns=True) == 4
    assert tile_size(x, torch.empty(narrow, narrow, 3, 3)) == 0
    assert tile_size(x, torch.empty(narrow - 1, narrow, 3, 3), learns=True) == 0


@pytest.mark.parametrize("trained", [True, False])
def test_under_autocast_it_is_direct(network: Network, trained: bool):
    """Its transforms would multiply the rounding of bfloat16."""
    x = torch.randn(1, 3, 8, 8)
    network.requires_grad_(trained)
    with torch.autocast("cpu", torch.bfloat16):
        assert apart(with_winograd(network)(x), network(x)) < 1e-2
        assert with_winograd(network)(x).dtype == torch.bfloat16


def test_a_weight_that_changes_is_transformed_again(network: Network):
    fast, x = with_winograd(network), torch.randn(1, 3, 8, 8)
    before = fast(x)
    with torch.no_grad():
        network.wide.weight.mul_(2)
    assert apart(fast(x), before) > 0.1
    assert apart(fast(x), network(x)) < 1e-5
    network.wide.weight.data = torch.randn(WIDE, WIDE, 3, 3)
    assert apart(fast(x), network(x)) < 1e-5


@pytest.mark.parametrize("kept", [0, 2**24])
@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_weights_of_inference_mode(
    kept: int, made: bool, used: bool, monkeypatch: pytest.MonkeyPatch
):
    """Made in it or not, used in it or not."""
    monkeypatch.setattr(winograd, "KEPT", kept)
    with torch.inference_mode(made):
        conv = nn.Conv2d(WIDE, WIDE, 3, padding=1).requires_grad_(False)
        fast = shared(conv)
        replace_convolutions(fast)
    with torch.inference_mode(used), torch.no_grad():
        x = torch.randn(1, WIDE, 8, 8)
        for _ in range(2):
            assert apart(fast(x), conv(x)) < 1e-5
