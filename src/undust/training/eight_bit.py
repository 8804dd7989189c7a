"""AdamW with moments of 8 bits (Dettmers et al. 2022), by the optional package torchao."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

from undust.errors import UndustError


def adamw_8bit(
    parameters: Iterable[nn.Parameter], betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer. Raises UndustError if torchao is not installed."""
    try:
        package = import_module("torchao.optim")
    except ImportError as error:
        raise UndustError(
            "optimizer.kind = 'adamw-8bit' needs torchao: pip install 'undust[torchao]'"
        ) from error
    return package.AdamW8bit(parameters, lr=0.0, betas=betas, weight_decay=weight_decay)


def plain_tensors(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor by its name, or the tensors that a quantised one consists of."""
    if hasattr(value, "__tensor_flatten__"):
        inner: list[str] = cast(Any, value).__tensor_flatten__()[0]
        for part in inner:
            yield f"{name}.{part}", getattr(value, part)
    else:
        yield name, value


@torch.no_grad()
def load_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    moments: Mapping[str, Tensor],
    step: int,
) -> None:
    """Restores the moments of a checkpoint; KeyError if one is absent.

    The quantised tensors are made by an update that changes nothing, of zeros at a rate of 0.
    """
    for value in parameters.values():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    for name, value in parameters.items():
        value.grad = None
        state = optimizer.state[value]
        state["step"].fill_(step)
        for moment in ("exp_avg", "exp_avg_sq"):
            for part, tensor in plain_tensors(f"{name}.{moment}", state[moment]):
                tensor.copy_(moments[part])
