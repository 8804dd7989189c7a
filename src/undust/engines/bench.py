"""Rates of the kinds of computation that networks consist of, on this processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undust.engines import probe
from undust.engines.int8 import Int8Conv2d
from undust.engines.probe import fastest
from undust.engines.winograd import can_gain, replace_convolutions

DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Rate:
    """One kind of computation.

    rates: floating-point operations a second, by dtype; None where there is no such computation.
    """

    name: str
    rates: dict[torch.dtype, float | None]


@torch.no_grad()
def rates() -> Iterator[Rate]:
    """Each kind: a large matrix product, a linear layer, convolutions, attention; about 2 s."""
    for name, (operations, call) in KINDS.items():
        found = {dtype: call(dtype) for dtype in DTYPES}
        yield Rate(name, {key: made and operations / fastest(made) for key, made in found.items()})


Call = Callable[[], Tensor]


def _product(dtype: torch.dtype) -> Call:
    a, b = torch.zeros(2, 1024, 1024, dtype=dtype)
    return lambda: a @ b


def _linear(dtype: torch.dtype) -> Call:
    layer, x = nn.Linear(640, 2560, dtype=dtype), torch.zeros(1024, 640, dtype=dtype)
    return lambda: layer(x)


def _convolution(dtype: torch.dtype) -> Call:
    conv = nn.Conv2d(320, 320, 3, padding=1, dtype=dtype)
    x = torch.zeros(1, 320, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return lambda: conv(x)


def _winograd(dtype: torch.dtype) -> Call | None:
    conv = nn.Conv2d(320, 320, 3, padding=1, dtype=dtype)
    if not can_gain(conv):
        return None
    replace_convolutions(conv)
    x = torch.zeros(1, 320, 32, 32).contiguous(memory_format=torch.channels_last)
    return lambda: conv(x)


def _int8(dtype: torch.dtype) -> Call | None:
    if dtype != torch.float32 or probe.int8_speedup() == 0:
        return None
    conv = nn.Conv2d(320, 320, 3, padding=1)
    conv.__class__ = Int8Conv2d
    x = torch.zeros(1, 320, 32, 32).contiguous(memory_format=torch.channels_last)
    return lambda: conv(x)


def _attention(dtype: torch.dtype) -> Call:
    q, k, v = torch.zeros(3, 1, 8, 1024, 40, dtype=dtype)
    return lambda: F.scaled_dot_product_attention(q, k, v)


KINDS: dict[str, tuple[float, Callable[[torch.dtype], Call | None]]] = {
    "matrix product, 1024×1024": (2 * 1024**3, _product),
    "linear layer, 1024 tokens, 640 to 2560": (2 * 1024 * 640 * 2560, _linear),
    "3×3 convolution, 320 channels, 32×32": (2 * 1024 * 9 * 320**2, _convolution),
    "the same by Winograd's algorithm": (2 * 1024 * 9 * 320**2, _winograd),
    "the same in 8 bits": (2 * 1024 * 9 * 320**2, _int8),
    "attention, 8 heads of 40, 1024 tokens": (4 * 8 * 1024**2 * 40, _attention),
}
"""Operations, as the definition has them, and the call for a dtype."""
