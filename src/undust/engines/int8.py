"""Networks whose large layers multiply 8-bit integers, which many processors do faster.

Weights are quantised once, with a scale for each output channel; activations at each call, with a
scale for each picture or token, so that a picture does not depend on the others of its batch (Jacob
et al. 2018, section 2.1). Sums are exact, in 32 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from undust.adapters.applied_loras import shared
from undust.engines.texts import keep_texts, layers_of_text
from undust.engines.weights import state, trains
from undust.networks.base import DenoiserNetwork
from undust.networks.stored import StoredConv2d, StoredLinear
from undust.networks.unet import UNetEncoder

ZERO = 128  # the integer that stands for 0
MIN_CHANNELS = 64  # with fewer, quantising costs more than the products save
TINY = 1e-12  # the least scale
N = TypeVar("N", bound=nn.Module)
_ONEDNN: Any = torch.ops.onednn


class Packed(NamedTuple):
    """A quantised weight [K,...] in oneDNN's own order; scales, zeros: [K]; state: `state`'s."""

    integers: Tensor
    scales: Tensor
    zeros: Tensor
    state: tuple[int, ...]


_PACKED = WeakTensorKeyDictionary()
"""By weight: models with and without a LoRA share most of theirs."""


def packed(weight: Tensor, prepack: Callable[[Tensor, Tensor], Tensor]) -> Packed:
    """A weight, quantised once until it is changed; prepack: from integers and scales."""
    now = state(weight)
    known = cast("Packed | None", _PACKED.get(weight))
    if known is None or known.state != now:
        with torch.inference_mode(False), torch.no_grad():
            integers, scales = quantized_weight(weight)
            zeros = torch.zeros(len(scales), dtype=torch.int64)
            known = _PACKED[weight] = Packed(prepack(integers, scales), scales, zeros, now)
    return known


def quantized_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [K,...] → integers from -127 to 127, and scales [K]."""
    wide, scales = _with_scales(weight, 1)
    return (wide / scales).round_().to(torch.int8), scales.flatten()


def quantized(x: Tensor, shared_from: int) -> tuple[Tensor, Tensor]:
    """Activations → integers from 1 to 255 around `ZERO`, and scales.

    shared_from: the first dimension that shares a scale.
    """
    wide, scales = _with_scales(x, shared_from)
    # The conversion to integers truncates.
    return (wide * (1 / scales)).add_(ZERO + 0.5).to(torch.uint8), scales


class Int8Conv2d(StoredConv2d):
    """A convolution of quantised pictures and weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """[B,C,H,W] → [B,K,H',W']."""
        if trains(input, self.weight):
            return super().forward(input)
        shape = self.stride, self.padding, self.dilation, self.groups

        def for_shape(integers: Tensor, scales: Tensor) -> Tensor:
            return _ONEDNN.qconv_prepack(integers, scales, 1.0, ZERO, *shape)

        integers, scales, zeros, _ = packed(self.weight, for_shape)
        x, factors = quantized(input.contiguous(memory_format=torch.channels_last), 1)
        y = _ONEDNN.qconv2d_pointwise(x, 1.0, ZERO, integers, scales, zeros, None, *shape, *_OUTPUT)
        bias = None if self.bias is None else self.bias.view(-1, 1, 1)
        return _scaled(y, factors, bias).to(input.dtype)


def _for_linear(integers: Tensor, _: Tensor) -> Tensor:
    return _ONEDNN.qlinear_prepack(integers, None)


class Int8Linear(StoredLinear):
    """A linear layer of quantised tokens and weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """[B,N,C] → [B,N,K]; vectors [B,C] → [B,K] in floating point."""
        if input.ndim == 2 or trains(input, self.weight):
            return super().forward(input)
        integers, scales, zeros, _ = packed(self.weight, _for_linear)
        x, factors = quantized(input.contiguous(), 2)
        y = _ONEDNN.qlinear_pointwise(x, 1.0, ZERO, integers, scales, zeros, None, *_OUTPUT)
        return _scaled(y, factors, self.bias).to(input.dtype)


def for_int8(network: N) -> N:
    """A copy of a denoiser or ControlNet with large layers in 8 bits; it shares the weights.

    The network itself if it is another one, such as a first stage, or has no large layers. Those
    that read the text stay as they are: they are computed once.
    """
    if not isinstance(network, DenoiserNetwork | UNetEncoder):
        return network
    copied = shared(network)
    keep_texts(copied)
    of_text = layers_of_text(copied)
    large = [layer for layer in _large(copied) if layer not in of_text]
    for layer in large:
        if isinstance(layer, nn.Conv2d):
            layer.__class__ = Int8Conv2d
        else:
            layer.__class__ = Int8Linear
    return copied if large else network


def _large(network: nn.Module) -> Iterator[nn.Conv2d | nn.Linear]:
    """The convolutions and linear layers that gain."""
    for layer in network.modules():
        if (
            isinstance(layer, nn.Conv2d | nn.Linear)
            and type(layer) in (nn.Conv2d, nn.Linear, StoredConv2d, StoredLinear)
            and min(layer.weight.shape[:2]) >= MIN_CHANNELS
            and layer.weight.device.type == "cpu"
        ):
            yield layer


def _with_scales(x: Tensor, shared_from: int) -> tuple[Tensor, Tensor]:
    """In float32, and the scales by which it is within -127 and 127, 1 in the dimensions left."""
    wide, rest = x.float(), tuple(range(shared_from, x.ndim))
    # torch's `aminmax` takes eight times as long.
    extreme = torch.maximum(wide.amax(rest, keepdim=True), -wide.amin(rest, keepdim=True))
    return wide, extreme.div_(127).clamp_(min=TINY)


def _scaled(y: Tensor, factors: Tensor, bias: Tensor | None) -> Tensor:
    """Sums y times the scales of their pictures, in place, plus the bias."""
    return y.mul_(factors) if bias is None else torch.addcmul(bias, y, factors, out=y)


# Scale, zero point and type of the output, which is not quantised, and no function after it.
_OUTPUT = (1.0, 0, torch.float32, "none", [], "")
