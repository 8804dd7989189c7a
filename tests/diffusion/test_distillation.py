"""The consistency function of a Gaussian, which is known, and the grid of levels."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from undust.diffusion.distillation import (
    ConsistencyGrid,
    Estimate,
    consistency_error,
    euler_path,
    pseudo_huber,
)
from undust.diffusion.noise import normal
from undust.diffusion.process import DISCRETE, EDM, Flow
from undust.errors import UndustError

DEVIATION = 0.7  # of the data
PROCESS = DISCRETE["scaled-linear"](1000, 0.00085, 0.012)


def column(sigma: Tensor) -> Tensor:
    return sigma.reshape(-1, 1)


def teacher(x: Tensor, sigma: Tensor) -> Tensor:
    """The mean of the posterior: x0 = s²/(s² + σ²)·x."""
    return x * DEVIATION**2 / (DEVIATION**2 + column(sigma) ** 2)


def exact(grid: ConsistencyGrid) -> Estimate:
    """The estimate whose line ends where the flow does: f = x·√((s² + end²)/(s² + σ²))."""

    def estimate(x: Tensor, sigma: Tensor) -> Tensor:
        places = (grid.levels[:-1] - column(sigma)).abs().argmin(1)
        end = column(grid.levels[grid.ends(places)])
        variance = DEVIATION**2
        f = x * ((variance + end**2) / (variance + column(sigma) ** 2)).sqrt()
        share = end / column(sigma)
        return (f - share * x) / (1 - share)

    return estimate


def points(grid: ConsistencyGrid) -> tuple[Tensor, Tensor]:
    """Samples of the noisy data at every level of a grid, and the levels' numbers."""
    places = torch.arange(len(grid.levels) - 1).repeat_interleave(64)
    deviation = (DEVIATION**2 + column(grid.levels[places]) ** 2).sqrt()
    return normal(1, (0, 0, 0), (len(places), 2)).double() * deviation, places


@pytest.mark.parametrize("phases", [1, 2, 5])
def test_the_exact_function_has_no_error_but_the_solver_s(phases: int):
    """Halved steps quarter the error of each, as Euler's method of second local order does."""
    sizes: list[float] = []
    for steps in (40, 80, 160):
        grid = ConsistencyGrid.of(PROCESS, steps, phases)
        x, places = points(grid)
        student = exact(grid)
        error = consistency_error(student, student, teacher, x, places, grid)
        # The last step, to 0, is from a fixed level of the process and not shorter and shorter.
        inner = (places < steps - steps // 10) & (places > steps // 10)
        sizes.append(float(error[inner].square().mean().sqrt()))
    assert sizes[0] < 0.02
    for coarse, fine in pairwise(sizes):
        assert 3.3 < coarse / fine < 4.7
    # The teacher in its place, which estimates the mean and not the end of the flow, is far off.
    grid = ConsistencyGrid.of(PROCESS, 160, phases)
    x, places = points(grid)
    wrong = consistency_error(teacher, teacher, teacher, x, places, grid)
    assert wrong.square().mean().sqrt() > 3 * sizes[2]


def test_the_path_is_the_flow():
    """A Gaussian's points keep their place: x/√(s² + σ²) does not change (to the step's order)."""
    errors: list[float] = []
    for steps in (40, 80, 160):
        grid = ConsistencyGrid.of(PROCESS, steps, 4)
        deviation = (DEVIATION**2 + grid.levels**2).sqrt()
        start = normal(1, (0, 0, 0), (64, 2)).double() * deviation[0]
        path = torch.stack(euler_path(teacher, start, grid.levels))
        flow = start * (deviation / deviation[0]).reshape(-1, 1, 1)
        errors.append(float((path - flow).square().mean().sqrt()))
        # Of the exact student it is in as many steps as phases.
        few = euler_path(exact(grid), start, grid.edges)
        torch.testing.assert_close(torch.stack(few), flow[:: steps // 4])
    for coarse, fine in pairwise(errors):
        assert 1.7 < coarse / fine < 2.4


def test_at_the_end_of_a_phase_the_target_is_the_teacher_s_point_itself():
    """The boundary condition: the target network is not asked there."""
    grid = ConsistencyGrid.of(PROCESS, 6, 3)
    x, places = points(grid)
    odd = places % 2 == 1

    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        return x + torch.nan

    error = consistency_error(teacher, broken, teacher, x, places, grid)
    # There a single step of Euler's is all of the function.
    torch.testing.assert_close(error[odd], torch.zeros_like(error[odd]))
    assert error[~odd].isnan().all()


def test_no_gradient_reaches_target_and_teacher():
    grid = ConsistencyGrid.of(PROCESS, 4, 1)
    x, places = points(grid)
    student, target, guide = (
        torch.tensor([factor], dtype=torch.float64, requires_grad=True)
        for factor in (1.1, 1.0, 0.9)
    )
    error = consistency_error(
        lambda x, _: student * x, lambda x, _: target * x, lambda x, _: guide * x, x, places, grid
    )
    error.square().mean().backward()
    assert student.grad is not None and student.grad.abs() > 0
    assert target.grad is None and guide.grad is None


def test_phases_end_at_the_levels_of_their_sampling():
    for process in (PROCESS, Flow()):
        grid = ConsistencyGrid.of(process, 20, 4)
        whole = ConsistencyGrid.of(process, 4, 1)
        torch.testing.assert_close(grid.edges, whole.levels)
        assert torch.equal(grid.thinned(10), grid.levels[::2])
        assert torch.equal(grid.thinned(99), grid.levels)
    assert ConsistencyGrid.of(EDM(), 8, 1).levels[0] == 80
    with pytest.raises(UndustError, match="solver_steps is 20, which 3 phases do not divide"):
        ConsistencyGrid.of(PROCESS, 20, 3)


def test_places_are_drawn_evenly():
    grid = ConsistencyGrid.of(PROCESS, 5, 1)
    drawn = grid.places(torch.linspace(0, 1, 1002, dtype=torch.float64)[1:-1])
    assert torch.bincount(drawn).tolist() == [200] * 5


def test_pseudo_huber_is_quadratic_below_its_width_and_linear_above():
    small, large = torch.full((2, 3, 4), 1e-3), torch.full((2, 3, 4), 10.0)
    torch.testing.assert_close(pseudo_huber(small, 0.1), torch.full((2,), 5e-6), rtol=1e-2, atol=0)
    torch.testing.assert_close(pseudo_huber(large, 0.1), torch.full((2,), 9.9005))
