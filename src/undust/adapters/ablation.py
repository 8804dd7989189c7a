"""Ablations of a U-Net: parts of it removed or replaced, to see what they are for.

The changed network is a copy that shares all weights; to take the changes off is to use the network
itself. A change puts hooks on the copy, and changes can be combined.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undust.adapters.applied_loras import shared
from undust.adapters.capture import self_attentions
from undust.errors import UndustError
from undust.networks.attention import Attention, PixelAttention, Rows, SpatialTransformer
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


def without_self_attention(network: AnyUNet) -> None:
    """Nothing for the output of each self-attention over pixels, which is added to its input."""
    for layer, _ in self_attentions(network).values():
        layer.register_forward_hook(_nothing_added)


def local_self_attention(radius: int) -> Change:
    """Self-attention to the pixels of a layer that are at most `radius` away in x and in y.

    The softmax is over these alone. A radius of 1 is the window of a 3×3 convolution.
    """

    def limit(network: AnyUNet) -> None:
        for layer, grid in self_attentions(network).values():
            layer.register_forward_pre_hook(_within(grid, radius))

    return limit


def without_tokens(which: Callable[[Conditioning], Tensor]) -> Change:
    """Cross-attention to the tokens of the text that are left.

    which: the tokens to leave out [B, T], bool, not all of an entry; the softmax is over the
    others. Raises UndustError for a network without cross-attention over pixels.
    """

    def mask(network: AnyUNet) -> None:
        left_out: list[Tensor] = []

        def begin(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            left_out[:] = [which(inputs[2])]

        network.register_forward_pre_hook(begin)
        layers = _cross_attentions(network)
        for layer in layers:
            layer.register_forward_pre_hook(_without(left_out))
        if not layers:
            raise UndustError(
                f"ablation: it needs cross-attention to text; this {type(network).__name__} has "
                "none"
            )

    return mask


def cross_attention_text(choose: Callable[[Conditioning], Tensor]) -> Change:
    """Other states [B, T, D] of the text for cross-attention than for the rest of the network.

    choose: called with the conditions of each call, as they are before later changes.
    """

    def change(network: AnyUNet) -> None:
        chosen: list[Tensor] = []

        def begin(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            chosen[:] = [choose(inputs[2])]

        def replace(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            x, context, *rest = inputs
            return x, chosen[0].to(context), *rest

        network.register_forward_pre_hook(begin)
        for module in network.modules():
            if isinstance(module, SpatialTransformer):
                module.register_forward_pre_hook(replace)

    return change


def _cross_attentions(network: nn.Module) -> list[Attention]:
    """Those over pixels."""
    return [
        layer
        for transformer in network.modules()
        if isinstance(transformer, SpatialTransformer)
        for block in transformer.blocks
        for layer in ((block.attn1, block.attn2) if block.only_cross else (block.attn2,))
    ]


def _nothing_added(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """A hook for the attention's output; a `PixelAttention` adds it to its input itself."""
    return inputs[0] if isinstance(module, PixelAttention) else torch.zeros_like(output)


def _within(
    grid: Sequence[int], radius: int
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A hook that limits self-attention over a grid, as it then is, to a window."""

    def limit(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0]
        rows, columns = (torch.arange(side, device=x.device) for side in grid)
        places = torch.cartesian_prod(rows, columns)
        near = ((places[:, None] - places).abs() <= radius).all(-1)
        return _instead(module, inputs, torch.arange(len(x), device=x.device), near)

    return limit


def _without(
    left_out: Sequence[Tensor],
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A hook that masks the tokens [B, T] of the only tensor in `left_out`, as it then is."""

    def limit(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        masked = left_out[0].to(inputs[0].device)
        rows = masked.any(1).nonzero()[:, 0]
        return _instead(module, inputs, rows, ~masked[rows, None, None]) if len(rows) else inputs

    return limit


def _instead(
    module: nn.Module, inputs: tuple[Any, ...], rows: Tensor, seen: Tensor
) -> tuple[Any, ...]:
    """The inputs of an attention, for some rows of it with a mask.

    rows: [K]; seen: bool, of the shape [K, heads, N, M] or one that broadcasts to it.
    """
    assert isinstance(module, Attention)
    heads = module.heads
    x, *rest = inputs
    context = rest[0] if rest else None
    given: Sequence[Rows] = rest[1] if len(rest) > 1 else ()

    def masked(q: Tensor, k: Tensor, v: Tensor, *, attend: object) -> Tensor:  # noqa: ARG001
        split = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (q, k, v))
        return F.scaled_dot_product_attention(*split, attn_mask=seen).transpose(1, 2).flatten(2)

    own: Rows = (rows, masked)
    return x, context, (*given, own)


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
