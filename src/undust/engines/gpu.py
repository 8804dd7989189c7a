"""Networks as a GPU computes them fastest without compiling them."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from undust.adapters.applied_loras import shared
from undust.engines.texts import keep_texts

N = TypeVar("N", bound=nn.Module)


def for_gpu(network: N) -> N:
    """A copy of a network that computes the keys and values of a text once; it shares the weights.

    The network itself if it has no attention to a text.
    """
    copied = shared(network)
    return copied if keep_texts(copied) else network
