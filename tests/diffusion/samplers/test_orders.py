"""Every stochastic sampler's weak and strong order; on a Gaussian without a random number."""

from __future__ import annotations

import pytest
from torch import Tensor

import convergence
from convergence import BOTTOM, GAUSSIAN, MIXTURE, TOP, WEAK_STEPS, even, fitted
from orders import mixture, weak_order
from undust.diffusion.fitting import distance
from undust.diffusion.noise import BrownianPath, normal
from undust.diffusion.samplers import SAMPLERS

# Solvers of the equation with noise; order 0 is that of samplers for distilled models.
WALK = [name for name, sampler in SAMPLERS.items() if sampler.stochastic and sampler.order > 0]
STRONG = [name for name, sampler in SAMPLERS.items() if sampler.strong is not None]


@pytest.mark.parametrize("name", WALK)
def test_weak_order(name: str):
    """The distribution's. Not below 100 steps, where edm's churn is at its ceiling."""
    order = weak_order(name, WEAK_STEPS)
    assert order == pytest.approx(SAMPLERS[name].order, abs=0.15)


@pytest.mark.parametrize("name", STRONG)
def test_strong_order(name: str):
    order = fitted(convergence.strong_errors(name))
    assert order == pytest.approx(SAMPLERS[name].strong, abs=0.15)


def test_strong_order_of_er_sde_as_the_reversed_process():
    order = fitted(convergence.strong_errors("er-sde", scale="sde"))
    assert order == pytest.approx(1, abs=0.15)


def test_dpmpp_sde_needs_one_path():
    """Its two draws over common ground, made independently, cost it an order."""

    def error(steps: int) -> float:
        sigmas = even(TOP, BOTTOM, steps)
        _, own, shares = convergence.impulses("dpmpp-sde", sigmas, None)
        spread = GAUSSIAN.deviations.item() ** 2
        variance = own**2 * (spread + TOP**2) + shares.square().sum()
        return (variance - spread - BOTTOM**2).abs().item()

    order = fitted([(steps, error(steps)) for steps in WEAK_STEPS])
    assert order == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", STRONG)
def test_on_a_mixture_the_same_path_is_followed_ever_closer(name: str):
    order = fitted(mixture().path_errors(name, steps=(16, 32, 64), finest=512))
    assert order == pytest.approx(SAMPLERS[name].strong, abs=0.2)


@pytest.mark.parametrize("name", [name for name in STRONG if SAMPLERS[name].path])
def test_the_noise_of_pictures_is_such_a_path(name: str):
    """With random paths, as a picture is painted: ever closer to 256 steps of the same."""
    path = BrownianPath([11], (500, 2))
    noise = lambda *step: path(*step)[0]  # noqa: E731
    start = 5 * normal(12, (0, 0, 0), (500, 2)).double()

    def end(steps: int) -> Tensor:
        *_, last = SAMPLERS[name](MIXTURE, start, even(5.0, BOTTOM, steps), noise)
        return last.x

    finest = end(256)
    order = fitted([(steps, distance(end(steps), finest)) for steps in (16, 32, 64)])
    assert order == pytest.approx(SAMPLERS[name].strong, abs=0.2)
