"""Networks whose slowest layers are computed in other ways, which are faster on a CPU."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from undust.adapters.applied_loras import hooked, shared
from undust.engines import probe, winograd
from undust.engines.texts import keep_texts
from undust.engines.weights import trains
from undust.networks.attention import GEGLU

MIN_WIDTH = 128  # channels; with fewer it makes no difference
N = TypeVar("N", bound=nn.Module)


class SplitGEGLU(GEGLU):
    """GEGLU as two linear layers, whose results are contiguous."""

    def forward(self, x: Tensor) -> Tensor:
        """[B,N,C] → [B,N,out]."""
        if trains(x, self.proj.weight):
            return super().forward(x)
        weight, gate_weight = self.proj.weight.to(x.dtype).chunk(2)
        bias, gate_bias = self.proj.bias.chunk(2)
        gate = F.gelu(F.linear(x, gate_weight, gate_bias))
        return gate.mul_(F.linear(x, weight, bias))


def for_cpu(network: N) -> N:
    """A copy of a network that shares its weights; the network itself if it would gain nothing.

    In float32 it has Winograd's convolutions, if they are faster here.
    """
    convolutions = winograd.can_gain(network) and probe.winograd_is_faster()
    if not convolutions and not any(map(_splits, network.modules())):
        return network
    copied = shared(network)
    if convolutions:
        winograd.replace_convolutions(copied)
    for layer in copied.modules():
        if _splits(layer):
            layer.__class__ = SplitGEGLU
    keep_texts(copied)
    return copied


def _splits(layer: nn.Module) -> bool:
    return type(layer) is GEGLU and layer.proj.in_features >= MIN_WIDTH and not hooked(layer.proj)
