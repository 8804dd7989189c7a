"""Reverse diffusion as a part: numbers of steps, distances, and paths in a plane."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from part_setups import emoji, setup, tiny
from undust.explain.figures import Frames, LineChart
from undust.explain.parts import PARTS, reverse
from undust.explain.setup import Setup
from undust.explain.texts import Language
from undust.pipeline import LatentDiffusion


@pytest.fixture(scope="module")
def shown() -> Setup:
    return setup(emoji())


@pytest.mark.parametrize(("model", "language"), [(emoji, "en"), (tiny, "ko")])
def test_it_runs(
    model: Callable[[], LatentDiffusion], language: Language, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reverse, "CAPS", (4, 6, 9))
    found = PARTS["reverse"](setup(model(), language))
    counts, distance, estimates, paths = found.figures
    assert isinstance(counts, Frames)
    assert isinstance(estimates, Frames)
    assert isinstance(distance, LineChart)
    assert isinstance(paths, LineChart)
    assert len(counts.images) == 3  # 1, 2, 4
    assert len(estimates.images) == 2
    assert [line.name for line in paths.lines[:-1]] == [*reverse.PATHS]
    assert len({(line.x[0], line.y[0]) for line in paths.lines}) == 1, "from one noise"
    assert [each.name for each in found.effects] == [
        *("one_step", "one_step_texture", "better_solver", "new_noise")
    ]
    assert found.numbers["steps"] == [1, 2, 4]
    assert found.numbers["many_steps"] == 9


def test_one_step_ends_at_the_first_estimate(shown: Setup):
    once = shown.sample(sampler="euler", steps=1)
    again = shown.sample(sampler="euler", steps=2)
    torch.testing.assert_close(once.latents, again.steps[0].x0)


def test_distances_are_in_units_of_the_deviation():
    others = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(1, 1, 2, 2)
    unit = math.sqrt(4 / 3)  # of the sample
    assert reverse.distances(others + 3, others) == [pytest.approx(3 / unit)]
    assert reverse.distances(others, others) == [0]


def test_a_path_is_scaled_to_variance_1(shown: Setup):
    steps = reverse.first_alone(shown, "euler", 2)
    found = reverse.path(shown, steps)
    assert found.shape == (3, steps[0].x[0].numel())
    start = shown.levels()[0]
    first = steps[0].x0 + (steps[0].sigma / start).item() * (
        found[0].reshape(steps[0].x.shape) * (1 + start**2).sqrt().item() - steps[0].x0
    )  # Euler's step from the path's start
    torch.testing.assert_close(first, steps[0].x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[2], steps[1].x[0].flatten())


def test_paths_in_a_plane_keep_their_distances():
    """A plane of 9 dimensions, turned at random, is found again."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(9, 2, generator=generator).double())[0]
    paths = [torch.randn(n, 2, generator=generator).double() for n in (4, 6)]
    flat, share = reverse.plane([each @ basis.T + 5 for each in paths])
    assert share == pytest.approx(1)
    found, expected = (torch.cdist(all_, all_) for all_ in (torch.cat(flat), torch.cat(paths)))
    torch.testing.assert_close(found, expected)
    assert (flat[0][0] <= flat[0][-1]).all()
