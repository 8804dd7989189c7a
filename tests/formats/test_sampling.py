"""The steps of distilled models in their folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

import undust
from undust.diffusion.process import DISCRETE, EDM
from undust.diffusion.schedules import sigmas
from undust.errors import UndustError
from undust.formats import model_folder, sampling
from undust.formats.components import SamplingDefaults
from undust.formats.scheduler import scheduler_config

PROCESS = DISCRETE["scaled-linear"](1000, 0.00085, 0.012)


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8])
@pytest.mark.parametrize(("sampler", "kind"), [("lcm", LCMScheduler), ("ddim", DDIMScheduler)])
def test_diffusers_takes_the_time_steps_of_trailing(steps: int, sampler: str, kind: Any):
    config = scheduler_config(PROCESS, "epsilon")
    own = sampling.scheduler(config, SamplingDefaults(sampler, "trailing", steps))
    assert own["_class_name"] == kind.__name__
    theirs = kind.from_config(own)
    theirs.set_timesteps(steps)
    levels = PROCESS.sigmas[theirs.timesteps]
    torch.testing.assert_close(levels, sigmas("trailing", PROCESS, steps)[:-1])


@pytest.mark.parametrize(
    "own", [None, SamplingDefaults("lcm", "karras", 4), SamplingDefaults("deis", "trailing", 4)]
)
def test_other_steps_leave_the_scheduler_as_it_is(own: SamplingDefaults | None):
    config = scheduler_config(PROCESS, "epsilon")
    assert sampling.scheduler(config, own) == config
    other = scheduler_config(EDM(), "edm")
    assert sampling.scheduler(other, SamplingDefaults("lcm", "trailing", 4)) == other


def test_they_are_the_defaults_of_a_request(copy: Path, tmp_path: Path):
    """Each is taken where it is not given; a list of σ only for as many steps."""
    levels = "9,3,1"
    parts = model_folder.read(copy, torch.float32)
    parts.sampling = SamplingDefaults("ddim", levels, 3)
    parts.guidance = 1.0
    model_folder.write(parts, tmp_path / "distilled")
    model = undust.load(tmp_path / "distilled")
    assert model.sampling == parts.sampling

    def asked(**options: Any) -> tuple[str, str, int, float]:
        [recipe] = model.recipes("a", seed=0, **options)
        return recipe.sampler, recipe.schedule, recipe.steps, recipe.guidance

    usual = model.process.default_schedule
    assert asked() == ("ddim", levels, 3, 1.0)
    assert asked(sampler="euler", guidance=2) == ("euler", levels, 3, 2.0)
    assert asked(steps=5) == ("ddim", usual, 5, 1.0)
    assert asked(schedule="8,2") == ("ddim", "8,2", 2, 1.0)
    assert asked(schedule="trailing", steps=2) == ("ddim", "trailing", 2, 1.0)
    plain = undust.load(copy).recipes("a", seed=0)[0]
    assert (plain.sampler, plain.steps) == ("deis", 20)


@pytest.mark.parametrize(("name", "sampler"), [("LCMScheduler", "lcm"), ("TCDScheduler", "tcd")])
def test_published_folders_are_known_by_their_scheduler(copy: Path, name: str, sampler: str):
    change(copy / "scheduler/scheduler_config.json", _class_name=name)
    model = model_folder.read(copy, torch.float32)
    assert model.sampling == SamplingDefaults(sampler, "trailing", 4)
    assert model.guidance == 1
    change(copy / "model_index.json", _guidance_scale=1.5)
    assert model_folder.read(copy, torch.float32).guidance == 1.5


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (4, r"_sampling: "),
        ({"sampler": "lcm", "schedule": "trailing"}, "_sampling: steps is missing"),
        ({"sampler": "lcn", "schedule": "trailing", "steps": 4}, "_sampling: .*did you mean 'lcm'"),
        ({"sampler": "lcm", "schedule": "trail", "steps": 4}, "_sampling: .*'trailing'"),
        ({"sampler": "lcm", "schedule": "3,2", "steps": 4}, "2 σ are listed, for 4 steps"),
        ({"sampler": "lcm", "schedule": "trailing", "steps": 0}, "0 is not a number of steps"),
    ],
)
def test_broken_entries_are_refused(copy: Path, entry: object, message: str):
    change(copy / "model_index.json", _sampling=entry)
    with pytest.raises(UndustError, match=message) as error:
        model_folder.read(copy, torch.float32)
    assert "\n" not in str(error.value) and "model_index.json" in str(error.value)
