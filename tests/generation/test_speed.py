"""Presets of speed: steps and a schedule of the model's own, in the recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import undust
from undust.diffusion.process import PROCESSES
from undust.diffusion.schedules import listed
from undust.errors import UndustError
from undust.formats import model_folder
from undust.generation.speed import SPEEDS
from undust.pipeline import LatentDiffusion

OWN = ("9,8,7,6,5,4,3,2,1", "8,4,2,1")


@pytest.fixture
def model(tiny_model: Path) -> LatentDiffusion:
    return undust.load(tiny_model)


def chosen(model: LatentDiffusion, **options: Any) -> tuple[int, str]:
    (recipe,) = model.recipes("a cat", seed=1, **options)
    return recipe.steps, recipe.schedule


def test_exact_is_the_default(model: LatentDiffusion):
    assert chosen(model, speed="exact") == chosen(model) == (20, "karras")


def test_without_schedules_of_its_own(model: LatentDiffusion):
    assert chosen(model, speed="balanced") == (SPEEDS["balanced"], "karras")
    assert chosen(model, speed="fast") == (SPEEDS["fast"], "align-your-steps")
    model.process = PROCESSES["flow"]()
    assert chosen(model, speed="fast")[1] == model.process.default_schedule


def test_with_schedules_of_its_own(model: LatentDiffusion):
    model.schedules = OWN
    for speed, own in zip(("balanced", "fast"), OWN, strict=True):
        assert chosen(model, speed=speed) == (SPEEDS[speed], own)
    (picture,) = model.generate("a cat", seed=1, speed="fast")
    assert model.rerun(picture.recipe).image == picture.image


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"speed": "fsat"}, "unknown speed 'fsat'; did you mean 'fast'"),
        ({"speed": "fast", "steps": 4}, "steps: the speed fast has its own"),
        ({"speed": "balanced", "schedule": "karras"}, "schedule: the speed balanced has its own"),
    ],
)
def test_what_does_not_go_together(model: LatentDiffusion, options: dict[str, Any], said: str):
    with pytest.raises(UndustError, match=said):
        model.recipes("a cat", **options)


def test_schedules_are_kept_in_the_folder(model: LatentDiffusion, tmp_path: Path):
    model.schedules = OWN
    model.save(tmp_path / "model")
    assert undust.load(tmp_path / "model").schedules == OWN
    index = tmp_path / "model" / model_folder.INDEX
    content = json.loads(index.read_text("utf-8"))
    for wrong in ("1,2", ["1,2"], ["karras"], [3, None], {"9": OWN[0]}, ["1,x"]):
        index.write_text(json.dumps({**content, model_folder.SCHEDULES: wrong}), "utf-8")
        with pytest.raises(UndustError, match="_schedules"):
            undust.load(tmp_path / "model")


def test_the_built_in_model_has_its_own():
    fitted = [listed(each) for each in undust.load("emoji").schedules]
    steps = {len(levels) - 1 for levels in fitted if levels is not None}
    assert steps == {steps for steps in SPEEDS.values() if steps}
