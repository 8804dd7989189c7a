from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orders import doubles, flow_order
from undust.diffusion.samplers import SAMPLERS

NAMES = ["pndm", "plms", "ipndm"]


@pytest.mark.parametrize("name", NAMES)
def test_a_slope_that_is_a_cubic_in_even_steps_of_sigma(name: str):
    """On an even list of σ the four past slopes are Adams and Bashforth's, exact for a cubic."""
    sigmas = torch.linspace(4, 1, 10, dtype=torch.float64)
    x = torch.zeros(1, 1, dtype=torch.float64)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x - (sigma * sigma**3)[:, None]

    for step in SAMPLERS[name](denoise, x, sigmas, torch.zeros_like):
        if step.index >= 3:
            area = (step.sigma**4 - sigmas[step.index] ** 4) / 4
            torch.testing.assert_close(step.x, x + area, rtol=0, atol=1e-11)
        x = step.x


@pytest.mark.parametrize("name", NAMES)
def test_second_order_whatever_the_number_of_slopes(name: str):
    assert flow_order(name, (64, 128, 256)) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(("name", "calls"), [("pndm", [4, 4, 4]), ("plms", [2]), ("ipndm", [])])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_calls_of_the_start(name: str, calls: list[int], steps: int):
    """A step to 0 has no end to ask at, wherever in the list it is."""
    asked: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(sigma[0].item())
        return x / 2

    sigmas = doubles(*range(steps, -1, -1))
    list(SAMPLERS[name](denoise, torch.ones(1, 1).double(), sigmas, torch.zeros_like))
    started = calls[: steps - 1]
    assert len(asked) == sum(started) + steps - len(started)
    assert min(asked) > 0
