from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orders import doubles, flow_order
from undust.diffusion.samplers import SAMPLERS


@pytest.mark.parametrize(("gamma", "measured"), [(1.0, 1), (1.5, 2), (2.0, 1)])
def test_order(gamma: float, measured: int):
    slope = flow_order("gradient-estimation", (64, 128, 256), gamma=gamma)
    assert slope == pytest.approx(measured, abs=0.15)


def test_two_is_as_far_off_as_euler_on_the_other_side():
    """Of noise that is linear in σ a step of Euler's misses h²/2, with γ = 2 a later one −h²/2."""
    sigmas = doubles(4.0, 3.0, 2.0, 1.0)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x - (sigma * sigma)[:, None]

    for gamma, missed in ((1.0, 0.5), (1.5, 0.0), (2.0, -0.5)):
        x = torch.zeros(1, 1, dtype=torch.float64)
        steps = SAMPLERS["gradient-estimation"](denoise, x, sigmas, torch.zeros_like, gamma=gamma)
        for step in steps:
            area = (step.sigma**2 - sigmas[step.index] ** 2) / 2
            if step.index > 0:
                torch.testing.assert_close(x + area - step.x, torch.full_like(x, missed))
            x = step.x
