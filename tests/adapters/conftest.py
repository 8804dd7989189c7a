"""Random weights and inputs that are the same in every run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def seeded() -> Iterator[None]:
    """Torch's generator at a fixed seed, without gradients."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        yield
