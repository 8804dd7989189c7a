"""Networks for a CPU: copies with other layers and the same results."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import undust
from undust.engines import probe
from undust.engines.cpu import SplitGEGLU, for_cpu
from undust.engines.winograd import WinogradConv2d
from undust.networks.attention import FeedForward, TransformerBlock


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    convs = [nn.Conv2d(128, 128, 3, padding=1) for _ in range(2)]
    return nn.Sequential(*convs, nn.Flatten(2), FeedForward(128)).eval().requires_grad_(False)


@pytest.fixture
def fast(network: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> Callable[..., nn.Module]:
    """The network for a CPU on which Winograd's convolutions are faster, or not."""

    def prepared(*, winograd: bool, given: nn.Module = network) -> nn.Module:
        monkeypatch.setattr(probe, "MIN_SPEEDUP", 0.0 if winograd else float("inf"))
        return for_cpu(given)

    return prepared


def classes(network: nn.Module) -> set[type[nn.Module]]:
    return {type(each) for each in network.modules()} & {SplitGEGLU, WinogradConv2d}


def error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("winograd", [True, False])
def test_results_are_the_same(fast: Callable[..., nn.Module], network: nn.Module, winograd: bool):
    ours, x = fast(winograd=winograd), torch.randn(2, 128, 8, 16)
    assert classes(ours) == ({SplitGEGLU, WinogradConv2d} if winograd else {SplitGEGLU})
    assert error(ours(x), network(x)) < 1e-5
    assert not classes(network)


def test_weights_are_shared(fast: Callable[..., nn.Module], network: nn.Module):
    for ours, theirs in zip(fast(winograd=True).parameters(), network.parameters(), strict=True):
        assert ours is theirs


def test_other_precisions_keep_their_convolutions(
    fast: Callable[..., nn.Module], network: nn.Module
):
    half = copy.deepcopy(network).bfloat16()
    ours, x = fast(winograd=True, given=half), torch.randn(2, 128, 8, 16).bfloat16()
    assert classes(ours) == {SplitGEGLU}
    assert error(ours(x), half(x)) < 1e-2


@pytest.mark.parametrize("engine", ["cpu", "torch"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_model_in_bfloat16_generates(engine: str, low_memory: bool):
    model = undust.load("emoji", engine=engine, dtype="bf16", low_memory=low_memory)
    assert model.generate("a cat", steps=1, seed=1, size=32)[0].recipe.precision == "bfloat16"


def test_gradients_are_those_of_the_network(fast: Callable[..., nn.Module], network: nn.Module):
    x = torch.randn(1, 128, 8, 16, requires_grad=True)
    found, expected = (
        torch.autograd.grad(each(x).square().sum(), x)[0] for each in (fast(winograd=True), network)
    )
    assert error(found, expected) < 1e-5


def test_hooks_are_called(fast: Callable[..., nn.Module], network: nn.Module):
    """A LoRA that is not merged is one."""
    projection = network.get_submodule("3.net.0.proj")
    projection.register_forward_hook(lambda _, inputs, output: output + inputs[0].mean())
    ours, x = fast(winograd=True), torch.randn(1, 128, 8, 16)
    assert classes(ours) == {WinogradConv2d}
    assert error(ours(x), network(x)) < 1e-5


def test_a_network_that_gains_nothing_is_returned(fast: Callable[..., nn.Module]):
    small = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), FeedForward(16))
    assert fast(winograd=True, given=small) is small


def test_the_probe_measures_a_ratio():
    assert 0.05 < probe.winograd_speedup() < 50
    assert probe.winograd_is_faster() == (probe.winograd_speedup() >= probe.MIN_SPEEDUP)


@pytest.fixture
def block() -> TransformerBlock:
    torch.manual_seed(0)
    return TransformerBlock(128, heads=2, context_channels=32).eval().requires_grad_(False)


@torch.no_grad()
def test_keys_and_values_are_computed_once_for_a_text(block: TransformerBlock):
    fast = for_cpu(block)
    counts: list[Tensor] = []
    fast.attn2.to_k.register_forward_hook(lambda _, inputs, output: counts.append(inputs[0]))
    one, other = torch.randn(2, 2, 5, 32)
    for text in (one, one, other, other, one):
        x = torch.randn(2, 9, 128)
        assert error(fast(x, text), block(x, text)) < 1e-5
    assert [text is one for text in counts] == [True, False, True]


@torch.no_grad()
def test_keys_of_a_text_that_is_gone_are_not_used(block: TransformerBlock):
    """A new tensor often has the address of one that was freed."""
    fast, x = for_cpu(block), torch.randn(1, 4, 128)
    for _ in range(5):
        text = torch.randn(1, 5, 32)
        assert error(fast(x, text), block(x, text)) < 1e-5
        del text


def test_texts_with_gradients_are_not_kept(block: TransformerBlock):
    fast, x = for_cpu(block), torch.randn(1, 4, 128)
    for _ in range(2):
        text = torch.randn(1, 5, 32, requires_grad=True)
        torch.autograd.grad(fast(x, text).sum(), text)
