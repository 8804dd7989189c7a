"""Schedules that are found: the parts against brute force, the whole against all others."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

from analytic import Mixture, flow
from undust.diffusion import fitting
from undust.diffusion.noise import normal
from undust.diffusion.process import PROCESSES
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.samplers.euler import euler_step
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError


def doubles(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


MIXTURE = Mixture(doubles(0.4, 0.6), doubles([-1.0, 0.3], [1.2, 0.0]), doubles(0.3, 0.4))
PROCESS = PROCESSES["scaled-linear"]()
GRID = SCHEDULES["exponential"](PROCESS, 48)[:-1]


def start(key: int, count: int = 64) -> Tensor:
    return PROCESS.sigma_max * normal(key, (0, 0, 0), (count, 2)).double()


def no_noise(*_: object) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def test_the_path_of_least_errors_is_that_of_brute_force():
    """Every path of four steps over eight levels, with errors that are any numbers."""
    count, steps = 8, 4
    errors = torch.rand(count, count, count + 1, generator=torch.manual_seed(0)).double()

    def total(inner: tuple[int, ...]) -> float:
        path = (0, *inner, count)
        first = errors[0, 0, path[1]]
        return float(first + sum(errors[path[k : k + 3]] for k in range(steps - 1)))

    falls = torch.arange(count + 1) > torch.arange(count)[:, None]
    masked = errors.masked_fill(~falls[None], torch.inf)
    masked = masked.masked_fill(
        (torch.arange(count)[:, None] > torch.arange(count))[..., None], torch.inf
    )
    best = min(combinations(range(1, count), steps - 1), key=total)
    assert fitting.shortest(masked, steps) == [0, *best]


def test_the_error_of_a_step_is_that_of_the_sampler():
    """Three levels: two steps of the sampler from the true state, and the same by the table."""
    grid = GRID[[0, 10, 20, 30]]
    states, estimates = fitting._walk(MIXTURE, start(1), grid)  # pyright: ignore
    errors = fitting.step_errors(states, estimates, grid) * (1 + doubles(*grid, 0.0) ** 2).sqrt()
    euler = euler_step(states[0], estimates[0], grid[0], grid[2]) - states[2]
    assert errors[0, 0, 2] == pytest.approx(float(euler.square().mean().sqrt()))
    denoise = iter([estimates[0], estimates[1]])
    # With the estimates given, the first step of the sampler can be put right by hand.
    steps = SAMPLERS["dpmpp-2m"](lambda *_: next(denoise), states[0], grid[[0, 1, 3]], no_noise)
    first, second = steps
    moved = second.x + grid[3] / grid[1] * (states[1] - first.x)
    found = (moved - states[3]).square().mean().sqrt()
    assert errors[0, 1, 3] == pytest.approx(float(found))
    assert errors[0, 1, 4] == pytest.approx(
        float((estimates[1] - estimates[3]).square().mean().sqrt())
    )
    assert errors[1, 0].isinf().all() and errors[0, 2, :3].isinf().all()


@pytest.mark.parametrize("steps", [5, 10])
def test_what_is_fitted_beats_every_published_schedule(steps: int):
    """On starts that the fit has not seen, by the distance to the true end."""
    published = {name: make(PROCESS, steps) for name, make in SCHEDULES.items()}
    fits = fitting.fit(
        MIXTURE, start(1, 64), GRID, steps, sampler="dpmpp-2m", others=[*published.values()]
    )
    *_, found = fits
    fresh, low = start(2, 512), float(GRID[-1])
    end = flow(MIXTURE, fresh, PROCESS.sigma_max, low, 500)
    truth = MIXTURE(end, torch.full((512,), low, dtype=torch.float64))

    def error(sigmas: Tensor) -> float:
        *_, step = SAMPLERS["dpmpp-2m"](MIXTURE, fresh, sigmas, no_noise)
        return fitting.distance(step.x, truth)

    others = {name: error(sigmas) for name, sigmas in published.items()}
    assert error(found.sigmas) < min(others.values()), others


@pytest.mark.parametrize("sampler", ["euler", "dpmpp-2m", "heun"])
def test_the_search_only_gains(sampler: str):
    errors: list[float] = []
    for fit in fitting.fit(MIXTURE, start(1, 16), GRID, 5, sampler=sampler):
        errors.append(fit.error)
        assert len(fit.sigmas) == 6 and fit.sigmas[0] == GRID[0] and fit.sigmas[-1] == 0
        assert bool((fit.sigmas.diff() < 0).all())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_a_better_beginning_is_taken():
    fits = fitting.fit(MIXTURE, start(1, 16), GRID, 5, sampler="euler")
    *_, best = fits
    others = [best.sigmas, GRID]  # the second has another number of steps
    again = fitting.fit(MIXTURE, start(1, 16), GRID, 5, sampler="euler", others=others)
    next(again)
    assert torch.equal(next(again).sigmas, best.sigmas)


def test_the_same_arguments_give_the_same_schedules():
    one, other = (
        [*fitting.fit(MIXTURE, start(1, 16), GRID, 4, sampler="dpmpp-2m")] for _ in range(2)
    )
    assert [fit.sigmas.tolist() for fit in one] == [fit.sigmas.tolist() for fit in other]
    calls = [fit.calls for fit in one]
    assert calls[0] == 2 * len(GRID) - 1 + 4  # Heun's walk, and a run of four steps
    assert all(after - before == 4 for before, after in pairwise(calls))


def test_rounding_decides_nothing():
    """A denoiser that is off by float32's rounding, as another processor's would be."""

    def other(x: Tensor, sigma: Tensor) -> Tensor:
        return MIXTURE(x, sigma) * (1 + 1e-7 * torch.sin(1e5 * x))

    *_, one = fitting.fit(MIXTURE, start(1, 16), GRID, 4, sampler="dpmpp-2m")
    *_, two = fitting.fit(other, start(1, 16), GRID, 4, sampler="dpmpp-2m")
    assert one.sigmas.tolist() == two.sigmas.tolist()
    assert all(float(f"{sigma:.4g}") == sigma for sigma in one.sigmas.tolist()[1:])


def test_one_step_has_no_choice():
    *_, found = fitting.fit(MIXTURE, start(1, 4), GRID, 1, sampler="euler")
    assert found.sigmas.tolist() == [float(GRID[0]), 0.0]


def test_what_cannot_be_is_refused():
    for grid in (GRID[:3], torch.cat([GRID, doubles(0.0)])):
        with pytest.raises(UndustError, match="grid: 5 steps need"):
            next(fitting.fit(MIXTURE, start(1, 2), grid, 5, sampler="euler"))
    with pytest.raises(UndustError, match="only samplers without noise"):
        next(fitting.fit(MIXTURE, start(1, 2), GRID, 5, sampler="ddpm"))
