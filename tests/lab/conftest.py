"""A model whose answers are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from convergence import GAUSSIAN
from undust.networks.conditioning import CallOptions, Conditioning
from undust.pipeline import LatentDiffusion, load


@pytest.fixture
def gaussian(tiny_model: Path) -> LatentDiffusion:
    """Its latents have the deviation s of GAUSSIAN around 0, whatever the words; in float32.

    Nothing is asked of its tiny network. The flow from σ scales x by √(s²/(s² + σ²)).
    """
    model = load(tiny_model)
    spread = GAUSSIAN.deviations.item() ** 2

    def denoise(
        x: Tensor, sigma: Tensor, cond: Conditioning, options: CallOptions | None = None, /
    ) -> Tensor:
        assert len(cond) == len(x)
        return x * (spread / (spread + sigma**2)).reshape(-1, 1, 1, 1)

    model.denoise = denoise
    return model
