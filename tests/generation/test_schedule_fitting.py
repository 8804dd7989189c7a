"""Schedules schedule_fitting to a model: what decides, and that the clock does not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from analytic import Mixture
from orders import doubles
from painter import ColourPainter
from undust.diffusion.process import PROCESSES, Process
from undust.diffusion.schedules import SCHEDULES
from undust.generation import schedule_fitting
from undust.networks.conditioning import CallOptions, Conditioning
from undust.recipe.recipe import Recipe

MIXTURE = Mixture(doubles(0.4, 0.6), doubles([-1.0], [1.2]), doubles(0.3, 0.4))


@dataclass
class MixturePainter(ColourPainter):
    """Knows that every number of a latent is drawn from one mixture."""

    process: Process

    def denoise(
        self, x: Tensor, sigma: Tensor, cond: Conditioning, options: CallOptions | None = None, /
    ) -> Tensor:
        flat = x.double().reshape(-1, 1)
        level = sigma.double().repeat_interleave(x[0].numel())
        return MIXTURE(flat, level).reshape(x.shape).to(x)


PAINTER = MixturePainter(PROCESSES["scaled-linear"]())


def recipes(first: int, sampler: str = "dpmpp-2m") -> list[Recipe]:
    fields = {"prompt": "red", "width": 4, "height": 2, "guidance": 1, "sampler": sampler}
    return [Recipe.read({**fields, "steps": 4, "seed": first + k}) for k in range(12)]


def search(calls: int, held_out: list[Recipe]) -> list[schedule_fitting.Choice]:
    return [*schedule_fitting.fit_schedule(PAINTER, recipes(0), held_out, calls=calls)]


def test_the_first_choice_is_the_best_published_schedule():
    held = recipes(100)
    (first,) = search(0, held)
    measure = schedule_fitting.Measure(PAINTER, held)
    means = {name: measure.mean(make(PAINTER.process, 4)) for name, make in SCHEDULES.items()}
    assert first.name == min(means, key=means.__getitem__)
    assert first.error == pytest.approx(means[first.name])


def test_held_out_pictures_decide():
    """The choice is the best on them, and better than the published one on others again."""
    held = recipes(100)
    choices = search(400, held)
    assert [choice.error for choice in choices] == sorted(
        (choice.error for choice in choices), reverse=True
    )
    last = choices[-1]
    assert last.name == "" and last.error < choices[0].error and last.calls <= 400
    assert last.error == pytest.approx(schedule_fitting.Measure(PAINTER, held).mean(last.sigmas))
    fresh = schedule_fitting.Measure(PAINTER, recipes(200))
    published = SCHEDULES[choices[0].name](PAINTER.process, 4)
    assert fresh.mean(last.sigmas) < fresh.mean(published)


def test_the_budget_is_of_calls_and_not_of_time():
    short, long = search(200, recipes(100)), search(300, recipes(100))
    assert len(short) < len(long)
    for one, other in zip(short, long, strict=False):
        assert torch.equal(one.sigmas, other.sigmas) and one.calls == other.calls
