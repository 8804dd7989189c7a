"""The measures themselves, against what is known without them."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convergence import (
    BOTTOM,
    GAUSSIAN,
    PAIRS,
    TOP,
    BrownianCase,
    along,
    even,
    falling,
    fitted,
    impulses,
    linear,
    solution,
)
from orders import doubles, mixture
from undust.diffusion.fitting import distance, no_noise
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.samplers.er_sde import SCALES
from undust.errors import UndustError

MEAN, DEVIATION = GAUSSIAN.means.item(), GAUSSIAN.deviations.item()


@cache
def gaussian() -> BrownianCase:
    return BrownianCase(GAUSSIAN)


@given(power=st.floats(-1, 6), factor=st.floats(1e-6, 1e6))
def test_known_powers_are_recovered(power: float, factor: float):
    points = [(steps, factor * steps**-power) for steps in (4, 7, 100)]
    assert fitted(points) == pytest.approx(power, abs=1e-9)


@pytest.mark.parametrize("levels", [linear, falling, even])
def test_levels_fall_from_top_to_bottom(levels):
    sigmas = levels(2.0, 0.5, 6)
    assert sigmas.tolist() == sorted(sigmas.tolist(), reverse=True)
    assert sigmas[[0, -1]].tolist() == pytest.approx([2.0, 0.5])
    assert len(sigmas) == 7


def test_distance_is_the_mean_of_each_pictures_root_mean_square():
    x = doubles([3.0, 4.0], [0.0, 0.0])
    assert distance(x, torch.zeros_like(x)) == pytest.approx(math.sqrt(12.5) / 2)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpm-solver-3", 3)])
@pytest.mark.parametrize("world", ["gaussian", "mixture"])
def test_textbook_orders(name: str, order: int, world: str):
    place = gaussian() if world == "gaussian" else mixture()
    slope = fitted(place.flow_errors(name, [33, 66, 129]))
    assert slope == pytest.approx(order, abs=0.15)


def test_the_error_of_one_step_of_euler():
    """x0 + σ'/σ·(x − x0) against the flow, which scales the distance to the mean."""
    kept = DEVIATION**2 / (DEVIATION**2 + TOP**2)
    stepped = kept + BOTTOM / TOP * (1 - kept)
    true = math.sqrt((DEVIATION**2 + BOTTOM**2) / (DEVIATION**2 + TOP**2))
    expected = (gaussian().start - MEAN).abs().mean().item() * abs(stepped - true)
    ((steps, error),) = gaussian().flow_errors("euler", [1])
    assert (steps, error) == (1, pytest.approx(expected))


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_adaptive_samplers_have_their_order(name: str):
    assert SAMPLERS[name].adaptive
    assert fitted(mixture().flow_errors(name)) == pytest.approx(SAMPLERS[name].order, abs=0.15)


def test_every_adaptive_sampler_has_a_pair():
    assert {name for name, sampler in SAMPLERS.items() if sampler.adaptive} == PAIRS.keys()


def test_impulses_of_one_step_of_ddpm():
    """x0 is the mean and a fifth of the way from it; σ' = ½ leaves ¼ of x − x0 (Ho et al. 2020)."""
    base, own, shares = impulses("ddpm", doubles(1.0, 0.5), None)
    assert base.item() == pytest.approx(0.75 * 0.8 * MEAN)
    assert own.item() == pytest.approx(0.2 + 0.25 * 0.8)
    assert shares[0].item() == pytest.approx(0.5 * math.sqrt(0.75))
    assert not shares[1:].any()


@pytest.mark.parametrize("scale", SCALES)
def test_the_solution_keeps_the_distribution(scale: str):
    """Whatever the scale of the noise, mean and variance are those of the Gaussian at BOTTOM."""
    own, shares = solution(even(TOP, BOTTOM, 4096), SCALES[scale])
    variance = own**2 * (DEVIATION**2 + TOP**2) + shares.square().sum()
    assert variance.item() == pytest.approx(DEVIATION**2 + BOTTOM**2, rel=1e-5)
    if scale == "ode":
        assert not shares.any()


def test_the_solution_of_the_reversed_process():
    """The distance to the mean goes as the variance does (Anderson 1982, for a Gaussian)."""
    own, _ = solution(even(TOP, BOTTOM, 4096), torch.square)
    ratio = (DEVIATION**2 + BOTTOM**2) / (DEVIATION**2 + TOP**2)
    assert own.item() == pytest.approx(ratio, rel=1e-6)


def test_steps_along_a_path_add_up():
    """In its clock 1/σ², and every one of them has variance 1."""
    levels = even(1.0, 0.1, 8)
    noise = along(levels, torch.eye(8, dtype=torch.float64))
    first, second, both = (noise(levels[a], levels[b]) for a, b in [(0, 3), (3, 8), (0, 8)])
    for each in (first, second, both):
        assert each.square().sum().item() == pytest.approx(1)
    lengths = [(levels[b] ** -2 - levels[a] ** -2).sqrt() for a, b in [(0, 3), (3, 8), (0, 8)]]
    torch.testing.assert_close(lengths[0] * first + lengths[1] * second, lengths[2] * both)
    with pytest.raises(UndustError, match="the path is not cut at"):
        noise(levels[0], (levels[1] * levels[2]).sqrt())


def test_no_noise_for_a_sampler_that_asks_for_some():
    with pytest.raises(UndustError, match="only samplers without noise"):
        no_noise(doubles(1.0), doubles(0.5))
