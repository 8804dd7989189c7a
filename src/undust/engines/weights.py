"""Questions about the weights of a layer."""

from __future__ import annotations

import hashlib
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

State = tuple[int, ...]


def trains(x: Tensor, weight: Tensor) -> bool:
    """Whether gradients of the input or the weight are needed."""
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def state(weight: Tensor) -> State:
    """Numbers that change when the weight is changed in place."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


_HASHES = WeakTensorKeyDictionary()
"""State and hash by weight: models with and without a LoRA share most of theirs."""


class HashedWeights:
    """The weights of a network and a hash of their names and contents."""

    def __init__(self, network: nn.Module) -> None:
        self._named = [*network.named_parameters(), *network.named_buffers()]
        self._states: list[State] = []
        self._hash = ""

    @property
    def hash(self) -> str:
        """SHA-256 in hexadecimal, computed again for weights that were changed in place."""
        states = [state(weight) for _, weight in self._named]
        if states != self._states:
            lines = [f"{name} {_hash(weight)}\n" for name, weight in self._named]
            self._hash = hashlib.sha256("".join(lines).encode()).hexdigest()
            self._states = states
        return self._hash


def _hash(weight: Tensor) -> str:
    """Of dtype, shape and values, in whichever order these are in memory."""
    now = state(weight)
    known = cast("tuple[State, str] | None", _HASHES.get(weight))
    if known is None or known[0] != now:
        values = weight.detach().contiguous().flatten().view(torch.uint8).numpy()
        found = hashlib.sha256(f"{weight.dtype} {[*weight.shape]} ".encode())
        found.update(values.data)
        known = _HASHES[weight] = now, found.hexdigest()
    return known[1]
