"""Recording of a U-Net's calls, with the probabilities of its attention to the words.

The recording network is a copy that shares all weights; the network itself never learns of it, and
to leave the recording off is to use the network itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from undust.adapters.applied_loras import shared
from undust.errors import UndustError
from undust.networks.attention import Attention, PixelAttention, SpatialTransformer
from undust.networks.base import DenoiserNetwork
from undust.networks.conditioning import Conditioning


@dataclass(frozen=True)
class RecordedCall:
    """One call of a network: its inputs, its output, and the attention of some of its entries.

    x, output: [B, C, h, w]; timestep: [B]; entries: the K entries of the batch whose attention is
    recorded; attention: for each layer of cross-attention, by its name in the network and in the
    order of their computation, the probabilities [K, h', w', T] of the T tokens at each pixel of
    the layer: the mean over its heads, in float32, so that their sum over T is 1.
    """

    x: Tensor
    timestep: Tensor
    cond: Conditioning
    output: Tensor
    entries: Sequence[int]
    attention: Mapping[str, Tensor]


def recording(
    network: DenoiserNetwork,
    entries: Callable[[Conditioning], Sequence[int]],
    report: Callable[[RecordedCall], object],
) -> DenoiserNetwork:
    """A copy of a U-Net that shares its weights, has the same output, and reports each call.

    entries: the entries of a batch to record the attention of; report: called after each call, in
    its thread. A call that fails is not reported. For one run at a time. Raises UndustError for a
    network without cross-attention over pixels.
    """
    copied = shared(network)
    found: dict[str, Tensor] = {}
    chosen: list[int] = []

    # Hooks are functions, because an engine may copy the modules again: a copied function is the
    # function itself.
    def begin(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.clear()
        chosen[:] = entries(inputs[2])

    def end(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, timestep, cond = inputs
        report(RecordedCall(x, timestep, cond, output, tuple(chosen), dict(found)))

    copied.register_forward_pre_hook(begin)
    copied.register_forward_hook(end)
    layers = [each for each in copied.named_modules() if isinstance(each[1], SpatialTransformer)]
    for name, layer in layers:
        _record(name, layer, chosen, found)
    if not layers:
        raise UndustError(
            f"attention to words: it is recorded in U-Nets with text, and this model has a "
            f"{type(network).__name__}"
        )
    return copied


def record_self_attention(
    places: Sequence[tuple[float, float]], report: Callable[[str, Tensor], object]
) -> Callable[[nn.Module], object]:
    """Hooks on a network that report, for each self-attention over pixels, where places look.

    places: Q points (x, y) in 0 … 1 from the left and from the top; report: called with the name of
    a layer and the probabilities [B, Q, h', w'] of all its pixels for the pixels at these points,
    the mean over its heads in float32, so that their sum over h' and w' is 1.
    """

    def hook(name: str, grid: Sequence[int]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            assert isinstance(module, Attention)
            tokens = _normalised(module, inputs[0])
            height, width = grid
            rows = [
                min(int(y * height), height - 1) * width + min(int(x * width), width - 1)
                for x, y in places
            ]
            found = probabilities(module, tokens[:, rows], tokens)
            report(name, found.mean(1).unflatten(2, (height, width)))

        return record

    def add(network: nn.Module) -> None:
        for name, (layer, grid) in self_attentions(network).items():
            layer.register_forward_pre_hook(hook(name, grid))

    return add


def self_attentions(network: nn.Module) -> dict[str, tuple[Attention, Sequence[int]]]:
    """The self-attention over pixels, by name, with the height and width of each latest input.

    Hooks on the network measure the inputs.
    """
    found: dict[str, tuple[Attention, Sequence[int]]] = {}
    for name, module in network.named_modules():
        own: dict[str, Attention] = {}
        if isinstance(module, PixelAttention):
            own = {name: module}
        elif isinstance(module, SpatialTransformer):
            own = {
                f"{name}.transformer_blocks.{number}.attn1": block.attn1
                for number, block in enumerate(module.blocks)
                if not block.only_cross
            }
        if own:
            grid = _measured(module)
            found |= {each: (layer, grid) for each, layer in own.items()}
    return found


def probabilities(attention: Attention, x: Tensor, context: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d) of tokens x [B,N,C] over a context [B,T,D] → [B,heads,N,T], in float32.

    Vaswani et al. 2017, eq. 1, by the layer's own queries and keys.
    """
    q, k = (
        tokens.unflatten(2, (attention.heads, -1)).transpose(1, 2).float()
        for tokens in (attention.to_q(x), attention.to_k(context))
    )
    return (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)


def _record(
    name: str, transformer: nn.Module, chosen: Sequence[int], found: dict[str, Tensor]
) -> None:
    """Puts hooks on the cross-attention of a transformer over pixels."""
    grid = _measured(transformer)

    def hook(full_name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x, context, *_ = (*inputs, None)
            if context is None or not chosen:  # self-attention
                return
            assert isinstance(module, Attention)
            rows = torch.tensor(chosen, device=x.device)
            # All entries, as the layer itself: others would be rounded differently.
            found[full_name] = (
                probabilities(module, x, context)[rows].mean(1).unflatten(1, tuple(grid))
            )

        return record

    for inner, module in transformer.named_modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(hook(f"{name}.{inner}"))


def _measured(module: nn.Module) -> Sequence[int]:
    """The height and width of the latest input of a module over pixels; a hook measures them."""
    grid: list[int] = []

    def measure(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        grid[:] = inputs[0].shape[2:]

    module.register_forward_pre_hook(measure)
    return grid


def _normalised(layer: Attention, x: Tensor) -> Tensor:
    """The tokens [B, N, C] that a self-attention layer reads of its input."""
    if not isinstance(layer, PixelAttention):
        return x
    x = x if layer.group_norm is None else layer.group_norm(x)
    return x.flatten(2).transpose(1, 2)
