"""Back to the noise: the closed form, the order of one iteration, exactness of many."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from analytic import Mixture, flow
from undust.diffusion.inversion import invert
from undust.diffusion.noise import normal
from undust.diffusion.process import PROCESSES
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError


def doubles(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


MIXTURE = Mixture(doubles(0.4, 0.6), doubles([-1.0, 0.3], [1.2, 0.0]), doubles(0.4, 0.6))
START = normal(1, (0, 0, 0), (32, 2)).double()


def last(x: Tensor, sigmas: Tensor, **options: float) -> Tensor:
    *_, step = invert(MIXTURE, x, sigmas, **options)  # pyright: ignore
    return step.x


def falling(steps: int) -> Tensor:
    return torch.linspace(math.log(10), math.log(0.1), steps + 1, dtype=torch.float64).exp()


@pytest.mark.parametrize(("iterations", "order"), [(1, 1), (100, 1)])
def test_the_noise_is_that_of_the_flow(iterations: int, order: int):
    """Both ways are Euler's method backwards: their error halves with the step."""
    truth = flow(MIXTURE, START, 0.1, 10, 400)
    errors = [
        (last(START, falling(n), iterations=iterations, tolerance=1e-13) - truth).abs().mean()
        for n in (128, 256, 512)
    ]
    for error, half in pairwise(errors):
        assert math.log2(error / half) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("schedule", ["karras", "trailing"])
@pytest.mark.parametrize("steps", [5, 20])
def test_exact_inversion_and_euler_are_the_identity(steps: int, schedule: str):
    """Down to σ = 0, where the last step is the denoiser itself."""
    sigmas = SCHEDULES[schedule](PROCESSES["scaled-linear"](), steps)
    picture = MIXTURE(3 * START, torch.full((32,), 0.3, dtype=torch.float64))
    noise = last(picture, sigmas, iterations=2000, tolerance=1e-14)
    *_, end = SAMPLERS["euler"](MIXTURE, noise, sigmas, lambda *_: pytest.fail("no noise"))
    torch.testing.assert_close(end.x, picture, rtol=0, atol=1e-8)
    once = last(picture, sigmas)
    *_, end = SAMPLERS["euler"](MIXTURE, once, sigmas, lambda *_: pytest.fail("no noise"))
    assert (end.x - picture).abs().max() > 1e-3  # DDIM inversion is not exact


def test_steps_climb_the_list():
    sigmas = doubles(4.0, 2.0, 1.0, 0.0)
    steps = list(invert(MIXTURE, START, sigmas))
    assert [step.index for step in steps] == [0, 1, 2]
    assert [float(step.sigma) for step in steps] == [1.0, 2.0, 4.0]


def test_what_cannot_be_is_refused():
    with pytest.raises(UndustError, match="iterations: 0 is too few"):
        last(START, falling(3), iterations=0)
    with pytest.raises(UndustError, match="sigmas: all have to be finite"):
        last(START, falling(3).flip(0))
