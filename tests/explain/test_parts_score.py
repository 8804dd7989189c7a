"""The score in the plane and on the model's way: closed forms, and the part as a whole."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch.func import grad, vmap

import undust
from undust.diffusion.noise import PictureNoise
from undust.explain.figures import Frames, LineChart, TextTable
from undust.explain.mixture import MODES, GaussianMixture
from undust.explain.parts import score
from undust.explain.setup import Setup
from undust.explain.texts import Translation
from variants import build

ROUND = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 2).double(), 0.5)


def _points(count: int) -> torch.Tensor:
    return PictureNoise([3], (count, 2)).start()[0].double()


@pytest.fixture(scope="module")
def setup() -> Setup:
    pictures = PictureNoise([0, 1], (3, 64, 64)).start().clamp(-1, 1)
    model = undust.load("emoji", engine="cpu")
    return Setup(model, ["a cat", "a cat"], [0, 1], pictures, Translation("en"), 3, 2.0)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 2.0])
def test_the_score_is_the_gradient_of_the_log_density(sigma: float):
    expected = vmap(grad(lambda x: MODES.log_density(x[None], sigma)[0]))(_points(50))
    torch.testing.assert_close(MODES.score(_points(50), sigma), expected)


def test_the_density_is_one_over_the_whole_plane():
    line = torch.linspace(-12, 12, 481, dtype=torch.float64)
    density = MODES.log_density(torch.cartesian_prod(line, line), 1.0).exp()
    assert density.sum().item() * (line[1] - line[0]).item() ** 2 == pytest.approx(1, abs=1e-6)


def test_of_one_gaussian_the_estimate_is_a_share_of_x():
    x = _points(20)[None].repeat(2, 1, 1)
    expected = torch.tensor([0.25 / 1.25, 0.25 / 4.25]).double()[:, None, None] * x
    torch.testing.assert_close(ROUND.denoise(x, torch.tensor([1.0, 2.0])), expected)


def test_the_mixture_has_mean_0_and_variance_1():
    second = MODES.weights @ MODES.means.square() + MODES.deviation**2
    assert MODES.mean.tolist() == pytest.approx([0, 0], abs=1e-12)
    assert second.mean().item() == pytest.approx(1)


def test_many_steps_end_as_far_from_the_modes_as_their_width():
    """The mean distance of a round Gaussian in the plane is s·√(π/2); Euler's error is below ¼."""
    ways = score.all_ways(range(8))
    exact = MODES.deviation * math.sqrt(math.pi / 2)
    assert ways["ode"].distances[-1].mean().item() == pytest.approx(exact, rel=0.25)
    assert ways["sde"].distances[-1].mean().item() == pytest.approx(exact, rel=0.25)


def test_one_step_ends_at_the_first_estimate_and_the_mean_alone_at_the_mean():
    ways = score.all_ways([5, 6])
    one, mean = ways["one"], ways["mean"]
    torch.testing.assert_close(one.x[-1], MODES.denoise(one.x[0], one.levels[0]))
    torch.testing.assert_close(mean.x[-1], MODES.mean.expand_as(mean.x[-1]))
    torch.testing.assert_close(one.x[0], mean.x[0])


def test_the_models_way_ends_at_its_last_estimate(setup: Setup):
    found = score.model_path(setup, setup.sample(sampler="euler"))
    assert found["to_end"][-1].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert found["left"].shape == found["noise"].shape == (2, 2)


def test_the_part_is_whole(setup: Setup):  # test_texts.py: what fits one language fits all
    result = score.show(replace(setup, texts=Translation("ko")))
    kinds = [Frames, Frames, LineChart, LineChart, TextTable]
    assert [type(figure) for figure in result.figures] == kinds
    assert [effect.claim for effect in result.effects] == ["higher", "higher", "lower", "lower"]
    assert [effect.verdict for effect in result.effects[:2]] == ["as claimed"] * 2


def test_the_part_is_of_other_models_too():
    pictures = PictureNoise([0, 1], (3, 64, 64)).start().clamp(-1, 1)
    setup = Setup(build("sd1"), ["a", "b"], [0, 1], pictures, Translation("en"), 1, 1.0)
    assert len(score.show(setup).effects) == 4


def test_the_code_of_each_equation_is_there():
    for _, place in score.EQUATIONS:
        module, _, names = place.partition(":")
        for name in names.split(", "):
            found = import_module(f"undust.{module}")
            for each in name.partition("[")[0].split("."):
                found = getattr(found, each)
