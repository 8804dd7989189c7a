"""Networks whose transformers multiply 8-bit floating-point numbers, which recent GPUs do faster.

Weights are quantised once, with a scale for each output channel; tokens at each call, with a scale
for each of them, so that a picture does not depend on the others of its batch. The numbers have 4
bits of exponent and 3 of mantissa (Micikevicius et al. 2022, "FP8 formats for deep learning").
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import ScalingType

from undust.adapters.applied_loras import hooked, shared
from undust.engines import compiled
from undust.engines.texts import layers_of_text
from undust.networks.attention import Attention, FeedForward
from undust.networks.base import DenoiserNetwork
from undust.networks.stored import StoredLinear
from undust.networks.unet import UNetEncoder

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max
CAPABILITY = (8, 9)  # of the first GPUs with such products
MULTIPLE = 16  # of the widths of a product
MIN_WIDTH = 256  # with less, quantising is expected to cost more than it saves; not measured
TINY = 1e-12  # the least scale
N = TypeVar("N", bound=nn.Module)


class Fp8Linear(StoredLinear):
    """A linear layer of quantised tokens; in place of its weight it has a quantised one.

    quantized [out,in] in 8 bits, scales [1,out].
    """

    quantized: Tensor
    scales: Tensor

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """[B,N,in] → [B,N,out], in the dtype of the input; added up in float32."""
        tokens, scales = quantize(input.flatten(0, -2))
        by_row = ScalingType.RowWise
        y = F.scaled_mm(
            tokens,
            self.quantized.T,
            scales,
            by_row,
            self.scales,
            by_row,
            output_dtype=torch.bfloat16,  # a GPU has no other for scales by row
            use_fast_accum=True,
        )
        return _plus(y.to(input.dtype).unflatten(0, input.shape[:-1]), self.bias)


def _plus(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N,C] in 8 bits, and their scales [N,1] in float32."""
    wide = rows.float()
    scales = (wide.abs().amax(1, keepdim=True) / LARGEST).clamp(min=TINY)
    return (wide / scales).to(DTYPE), scales


def missing() -> str:
    """Why there are no such products here, "" if there are."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < CAPABILITY:
        return "there is no GPU with such products"
    return compiled.missing()


def for_fp8(network: N) -> N:
    """A compiled copy of a denoiser or ControlNet with its transformers in 8 bits.

    The network itself if it is another one, has a LoRA that is not merged, or no large layers.
    Those that read the text stay as they are. It shares all other weights, and does not follow
    changes in place of those that it quantised.
    """
    if not isinstance(network, DenoiserNetwork | UNetEncoder) or hooked(network):
        return network
    copied = in_8_bits(network)
    return network if copied is network else compiled.for_compile(copied)


def in_8_bits(network: N) -> N:
    """A copy with the large linear layers of its transformers in 8 bits; itself without any."""
    copied = shared(network)
    of_text = layers_of_text(copied)
    large = [layer for layer in _large(copied) if layer not in of_text]
    with torch.inference_mode(False), torch.no_grad():
        for layer in large:
            quantized, scales = quantize(layer.weight)
            del layer.weight
            layer.register_buffer("quantized", quantized)
            layer.register_buffer("scales", scales.T.contiguous())
            layer.__class__ = Fp8Linear
    return copied if large else network


def _large(network: nn.Module) -> list[nn.Linear]:
    """The linear layers of tokens that gain."""
    return [
        layer
        for part in network.modules()
        if isinstance(part, Attention | FeedForward)
        for layer in part.modules()
        if isinstance(layer, nn.Linear)
        and min(layer.weight.shape) >= MIN_WIDTH
        and not any(side % MULTIPLE for side in layer.weight.shape)
    ]
