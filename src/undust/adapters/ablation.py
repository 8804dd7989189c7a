"""Ablations of a U-Net: parts of it removed or replaced, to see what they are for.

The changed network is a copy that shares all weights; to take the changes off is to use the network
itself. A change puts hooks on the copy, and changes can be combined.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from undust.adapters.applied_loras import shared
from undust.errors import UndustError
from undust.networks.base import DenoiserNetwork
from undust.networks.conditioning import Conditioning
from undust.networks.unet import AnyUNet, UpBlock

Change = Callable[[AnyUNet], object]
"""Puts hooks on a copy of a network."""


def changed(*changes: Change) -> Callable[[DenoiserNetwork], DenoiserNetwork]:
    """A function from a U-Net to a copy with these changes, which shares its weights.

    It raises UndustError for networks of other kinds.
    """

    def copy(network: DenoiserNetwork) -> DenoiserNetwork:
        copied = shared(as_unet(network))
        for change in changes:
            change(copied)
        return copied

    return copy


def as_unet(network: DenoiserNetwork) -> AnyUNet:
    """The network, which has to be a U-Net; UndustError if it is not."""
    if not isinstance(network, AnyUNet):
        raise UndustError(f"ablation: it needs a U-Net; this model has a {type(network).__name__}")
    return network


def record_stages(report: Callable[[str, Tensor], object]) -> Change:
    """No ablation: reports the output [B, C, h, w] of each block, by its name in the network."""

    def record(network: AnyUNet) -> None:
        blocks = {f"down_blocks.{n}": each for n, each in enumerate(network.down_blocks)}
        if network.mid_block is not None:
            blocks["mid_block"] = network.mid_block
        blocks |= {f"up_blocks.{n}": each for n, each in enumerate(network.up_blocks)}
        for name, block in blocks.items():
            block.register_forward_hook(_reporting(partial(report, name)))

    return record


def without_skips(which: Collection[int]) -> Change:
    """Zeros for these skip connections, by number: 0 is the first convolution's output.

    The others follow in the order of `UNetEncoder.skips`, from the finest to the coarsest.
    """

    def cut(network: AnyUNet) -> None:
        left = len(network.skips)
        for block in network.up_blocks:
            assert isinstance(block, UpBlock)
            for resnet in block.resnets:
                left -= 1
                if left in which:
                    resnet.register_forward_pre_hook(_zero_last(network.skips[left]))

    return cut


def timesteps(change: Callable[[Tensor], Tensor]) -> Change:
    """Other time steps [B] for the network than those of its input's noise level."""

    def replace(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, timestep, *rest = inputs
        return x, change(timestep), *rest

    return lambda network: network.register_forward_pre_hook(replace)


def conditions(change: Callable[[Conditioning], Conditioning]) -> Change:
    """Other conditions for the network than those that it is given."""

    def replace(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, timestep, cond, *rest = inputs
        return x, timestep, change(cond), *rest

    return lambda network: network.register_forward_pre_hook(replace)


def _reporting(report: Callable[[Tensor], object]) -> Callable[[nn.Module, Any, Any], None]:
    """A hook that reports the output, or the last one of several."""

    def hook(_module: nn.Module, _inputs: Any, output: Tensor | list[Tensor]) -> None:
        report(output[-1] if isinstance(output, list) else output)

    return hook


def _zero_last(channels: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A hook that replaces the last channels of the first input by zeros."""

    def zero(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = inputs
        kept = x[:, :-channels]
        return torch.cat([kept, torch.zeros_like(x[:, -channels:])], 1), *rest

    return zero
