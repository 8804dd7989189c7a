"""Weights by a rule, the same wherever they are made, so that no file has to hold them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from zlib import crc32

import numpy as np
import torch
from torch import Tensor


def uniform(name: str, shape: Iterable[int]) -> Tensor:
    """Numbers in [-1, 1) of a tensor of that name, float32; exact on every machine."""
    numbers = np.random.default_rng(crc32(name.encode())).random(tuple(shape), dtype=np.float32)
    return torch.from_numpy(2 * numbers - 1)


def made_weights(shapes: Mapping[str, Iterable[int]]) -> dict[str, Tensor]:
    """A tensor for each name: about 1 for norms, small biases, matrices that keep the scale."""
    made: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        tensor = uniform(name, shape)
        if tensor.ndim > 1:
            made[name] = tensor * math.sqrt(2 / math.prod(tensor.shape[1:]))
        elif name.endswith("mix_factor"):
            made[name] = tensor
        else:
            made[name] = 0.2 * tensor + name.endswith(".weight")
    return made
