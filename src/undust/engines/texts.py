"""Cross-attention that computes the keys and values of a text once."""

from __future__ import annotations

from collections.abc import Iterator
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from undust.networks.attention import Attention, TransformerBlock
from undust.networks.dit import AdaptiveBlock


class CachedCrossAttention(Attention):
    """Cross-attention that computes the keys and values of a text once, not at each step."""

    _latest: tuple[ReferenceType[Tensor], tuple[Tensor, Tensor]] | None = None

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the last call if it had the same context, which must not change in place."""
        if torch.is_grad_enabled():
            return super().keys_and_values(context)
        latest = self._latest  # in one access: another thread may replace it
        if latest is None or latest[0]() is not context:
            latest = self._latest = ref(context), super().keys_and_values(context)
        return latest[1]


def keep_texts(network: nn.Module) -> bool:
    """Makes cross-attention `CachedCrossAttention`, in place; whether there is any."""
    found = [*_cross_attention(network)]
    for attention in found:
        attention.__class__ = CachedCrossAttention
    return bool(found)


def layers_of_text(network: nn.Module) -> set[nn.Module]:
    """The layers that compute keys and values of a text."""
    return {
        layer
        for attention in _cross_attention(network)
        for layer in (attention.to_k, attention.to_v)
    }


def _cross_attention(network: nn.Module) -> Iterator[Attention]:
    for block in network.modules():
        if isinstance(block, TransformerBlock | AdaptiveBlock) and block.attn2 is not None:
            yield block.attn2
