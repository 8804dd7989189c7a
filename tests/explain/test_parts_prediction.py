"""Targets and errors of ε, x0 and v: closed forms, and the part as a whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import undust
from undust.diffusion.noise import PictureNoise
from undust.diffusion.prediction import PREDICTIONS
from undust.diffusion.process import EDM, PROCESSES
from undust.explain.figures import Frames, LineChart, TextTable
from undust.explain.parts import prediction
from undust.explain.parts.prediction import HIGHEST, NAMES, TIMES
from undust.explain.setup import Setup
from undust.explain.texts import Translation
from variants import build

ENGLISH = Translation("en")


@pytest.fixture(scope="module")
def setup() -> Setup:
    pictures = PictureNoise([0, 1, 2], (3, 64, 64)).start().clamp(-1, 1)
    model = undust.load("emoji", engine="cpu")
    return Setup(model, ["a cat", "a cat"], [0, 1], pictures, ENGLISH, 2, 2.0)


@pytest.mark.parametrize("name", PROCESSES)
def test_times_are_even_and_end_where_the_process_does(name: str):
    process = PROCESSES[name]()
    t, sigma = prediction.even_times(process, 6)
    assert sigma[0].item() == pytest.approx(process.sigma_min)
    assert sigma[-1].item() == pytest.approx(min(process.sigma_max, HIGHEST))
    torch.testing.assert_close(process.timestep(sigma), t)
    apart = t.diff()
    assert apart.min() > 0.9 * apart.max()


def test_times_of_edm_are_even_in_the_logarithm():
    _, sigma = prediction.even_times(EDM(), 5)
    assert sigma.log().diff().tolist() == pytest.approx(
        [sigma.log().diff().mean().item()] * 4, rel=1e-2
    )


def test_errors_of_the_three_are_one_error(setup: Setup):
    found = prediction.measured(setup)
    assert found.error["sample"].shape == (TIMES, 3)
    for name in NAMES:
        factor = PREDICTIONS[name].scale(found.sigma)[:, None] ** 2
        torch.testing.assert_close(
            found.error[name] * factor, found.error["sample"], check_dtype=False
        )


def test_targets_have_the_variance_of_theory(setup: Setup):
    found = prediction.measured(setup)
    own = setup.latents.flatten(1).var(1)
    v = (1 + found.sigma[:, None] ** 2 * own) / (1 + found.sigma[:, None] ** 2)
    torch.testing.assert_close(found.variance["sample"], own.expand(TIMES, 3))
    assert (found.variance["epsilon"] - 1).abs().max() < 0.25  # of 1,024 numbers
    assert (found.variance["v_prediction"] / v - 1).abs().max() < 0.25


def test_an_answer_that_is_the_mean_leaves_the_whole_target(setup: Setup):
    """For x0 = x − σ·0 the error of ε is its mean square, its variance but for the mean."""

    class Blind(Setup):
        def estimate(self, x: torch.Tensor, *_args: object, **_named: object) -> torch.Tensor:
            return x

    blind = Blind(setup.model, setup.prompts, setup.seeds, setup.pictures, ENGLISH, 2, 2.0)
    left = prediction.measured(blind).unexplained("epsilon")
    assert left.mean(1).tolist() == pytest.approx([1] * TIMES, abs=0.01)


def test_without_errors_the_latents_are_those_of_the_library(setup: Setup):
    expected = setup.sample(sampler="euler").latents
    torch.testing.assert_close(prediction.with_errors(setup, None), expected)


def test_an_error_of_x0_in_the_last_step_stays_as_it_is(setup: Setup):
    """One step goes to the estimate itself, so that the added numbers are all that is changed."""
    one = replace(setup, steps=1)
    clean = prediction.with_errors(one, None)
    noise = PictureNoise(one.seeds, clean.shape[1:])(torch.ones(()), torch.ones(()))
    for name in NAMES:
        factor = (
            PREDICTIONS[name].scale(torch.tensor(one.model.process.sigma_max)) * prediction.SIZE
        )
        moved = prediction.with_errors(one, name) - clean
        torch.testing.assert_close(moved, factor.float() * noise, rtol=1e-4, atol=1e-4)


def test_the_part_is_whole(setup: Setup):  # test_texts.py: what fits one language fits all
    result = prediction.show(replace(setup, texts=Translation("ko")))
    kinds = [type(figure) for figure in result.figures[:6]]
    assert kinds == [Frames, TextTable, LineChart, LineChart, LineChart, LineChart]
    names = [effect.name for effect in result.effects[:4]]
    assert names == ["off_one", "unexplained_share", "moved", "noise_left"]


def test_the_part_is_of_other_models_too():
    model = build("sd1")
    pictures = PictureNoise([0, 1], (3, 64, 64)).start().clamp(-1, 1)
    result = prediction.show(Setup(model, ["a", "b"], [0, 1], pictures, ENGLISH, 2, 2.0))
    assert result.numbers["own_prediction"] == "epsilon"
