"""Layers whose weights stay in 16 bits and that compute in float32, in half the memory.

Numbers of float16 and bfloat16 are numbers of float32 too, so nothing is lost. Weights that are as
in their file stay memory-mapped: the system can drop them and read them again.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGE = 2**16  # numbers of a weight; smaller ones are not worth it
WIDE = torch.float32


class StoredConv2d(nn.Conv2d):
    """A convolution that computes in the dtype of its input.

    is_stored: whether its weight has 16 bits and it computes in float32; engines' layers are of
    this class too, with weights of any kind.
    """

    is_stored = False

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """[B,C,H,W] → [B,K,H',W']."""
        return self._conv_forward(input, self.weight.to(input.dtype), self.bias)


class StoredConv3d(nn.Conv3d):
    """A convolution over frames too that computes in the dtype of its input.

    is_stored: as of `StoredConv2d`.
    """

    is_stored = False

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """[B,C,F,H,W] → [B,K,F',H',W']."""
        return self._conv_forward(input, self.weight.to(input.dtype), self.bias)


class StoredLinear(nn.Linear):
    """A linear layer that computes in the dtype of its input; is_stored: as of `StoredConv2d`."""

    is_stored = False

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """[...,C] → [...,K]."""
        return F.linear(input, self.weight.to(input.dtype), self.bias)


def keep_stored(network: nn.Module) -> None:
    """Makes a network compute in float32, in place; large weights of 16 bits stay as they are."""
    stored = set[int]()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.Linear) and _stays(layer):
            stored.add(id(layer.weight))
            if isinstance(layer, nn.Conv2d):
                layer.__class__ = StoredConv2d
            elif isinstance(layer, nn.Conv3d):
                layer.__class__ = StoredConv3d
            else:
                layer.__class__ = StoredLinear
            cast("StoredConv2d | StoredConv3d | StoredLinear", layer).is_stored = True
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point() and id(tensor) not in stored:
            tensor.data = tensor.data.to(WIDE)


def computes_in(module: nn.Module) -> torch.dtype:
    """The dtype that a network, or a layer with a weight, computes in."""
    for layer in module.modules():
        if isinstance(layer, StoredConv2d | StoredConv3d | StoredLinear) and layer.is_stored:
            return WIDE
    return next(module.parameters()).dtype


def _stays(layer: nn.Conv2d | nn.Conv3d | nn.Linear) -> bool:
    weight = layer.weight
    return (
        type(layer) in (nn.Conv2d, nn.Conv3d, nn.Linear)
        and weight.is_floating_point()
        and weight.element_size() < WIDE.itemsize
        and weight.numel() >= LARGE
    )
