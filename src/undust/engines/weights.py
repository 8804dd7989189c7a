"""Questions about the weights of a layer."""

from __future__ import annotations

import torch
from torch import Tensor


def trains(x: Tensor, weight: Tensor) -> bool:
    """Whether gradients of the input or the weight are needed."""
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def state(weight: Tensor) -> tuple[int, ...]:
    """Numbers that change when the weight is changed in place."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version
