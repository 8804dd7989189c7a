from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        yield


@pytest.fixture
def assert_close() -> Callable[[Tensor, Tensor], None]:
    """Relative differences, in norm and in the largest entry, under 1e-5 in float32."""

    def check(ours: Tensor, theirs: Tensor) -> None:
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype == torch.float32
        difference = ours - theirs
        assert difference.norm() < TOLERANCE * theirs.norm()
        assert difference.abs().max() < TOLERANCE * theirs.abs().max()

    return check


@pytest.fixture
def shake() -> Callable[[nn.Module], None]:
    """Moves every weight: fresh norms are all ones and zeros, and would hide being mixed up."""

    def move(module: nn.Module) -> None:
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)

    return move
