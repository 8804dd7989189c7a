"""Averages of a length chosen after the run, against those of the stored weights of each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from undust.cli import main
from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.training.averaging import (
    LENGTHS,
    MAX_LENGTH,
    Profile,
    coefficients,
    reconstructed,
    remove_later,
    snapshot_steps,
)
from undust.training.diffusion import DiffusionConfig
from undust.training.first_stage import FirstStageConfig
from undust.training.run import prepare, train

FirstStage = Callable[..., FirstStageConfig]
Diffusion = Callable[..., DiffusionConfig]
Contents = Callable[[Path], dict[str, bytes]]
NAME = "autoencoder.encoder.conv_in.weight"


@pytest.mark.parametrize("length", [0.05, 0.08, 0.10, 0.2, MAX_LENGTH])
def test_a_length_is_the_standard_deviation_of_its_profile(length: float):
    g = Profile.of(length, 1).exponent
    mean = quad(lambda t: t * (g + 1) * t**g, 0, 1)[0]
    square = quad(lambda t: t**2 * (g + 1) * t**g, 0, 1)[0]
    assert math.sqrt(square - mean**2) == pytest.approx(length)


def test_inner_products_are_the_integrals():
    one, two = Profile(16.97, 700), Profile(6.94, 1000)

    def density(profile: Profile, t: float) -> float:
        g = profile.exponent
        return (g + 1) * (t / profile.step) ** g / profile.step

    expected = quad(lambda t: density(one, t) * density(two, t), 0, 700)[0]
    assert one.dot(two) == pytest.approx(expected) == two.dot(one)


def test_a_profile_that_is_there_is_itself():
    profiles = [Profile.of(length, step) for step in (50, 100) for length in LENGTHS]
    assert coefficients(profiles, profiles[3]) == pytest.approx([0, 0, 0, 1], abs=1e-6)


def test_a_later_snapshot_that_stays_is_named(tmp_path: Path):
    (tmp_path / "snapshots/step-00000004.safetensors").mkdir(parents=True)
    remove_later(tmp_path, 4)
    with pytest.raises(UndustError, match=r"cannot remove .*step-00000004.safetensors: Is a dir"):
        remove_later(tmp_path, 3)


def test_it_is_the_average_of_the_weights_of_all_steps(
    first_stage_recipe: FirstStage, tmp_path: Path, contents: Contents
):
    changes = ("run.snapshot_every=5", "run.checkpoint_every=15", "run.sample_every=100")
    recipe = first_stage_recipe("run.steps=30", *changes)
    trainer, _ = prepare(recipe, tmp_path / "whole")
    weights: list[torch.Tensor] = []
    trainer.train(lambda _: weights.append(trainer.parameters[NAME].detach().double().clone()))
    assert snapshot_steps(tmp_path / "whole") == [5, 10, 15, 20, 25, 30]

    def direct(length: float) -> torch.Tensor:
        power = np.arange(31) ** (Profile.of(length, 1).exponent + 1)
        shares = torch.tensor(np.diff(power) / power[-1])
        return (shares[:, None, None, None, None] * torch.stack(weights)).sum(0)

    last = safetensors_file.load(tmp_path / "whole/snapshots/step-00000030.safetensors")
    for length in LENGTHS:
        torch.testing.assert_close(
            last[f"{length}/{NAME}"].double(), direct(length), rtol=1e-5, atol=1e-6
        )
    apart = (direct(0.05) - direct(0.10)).norm()
    for length in (0.06, 0.08, 0.10, 0.15):
        error = reconstructed(tmp_path / "whole", length)[NAME].double() - direct(length)
        assert error.norm() < 0.05 * apart, length

    shorter = first_stage_recipe("run.steps=15", *changes)
    train(shorter, tmp_path / "parts")
    (tmp_path / "parts/snapshots/step-00000020.safetensors").write_bytes(
        b"of a run that was killed"
    )
    train(recipe, tmp_path / "parts", resume=True)
    assert contents(tmp_path / "parts/snapshots") == contents(tmp_path / "whole/snapshots")


def test_a_model_is_published_with_it(diffusion_recipe: Diffusion, tmp_path: Path):
    recipe = diffusion_recipe("run.snapshot_every=2")
    train(recipe, tmp_path / "run")
    assert main(["ema", str(tmp_path / "run"), "--length", "0.08"]) == 0
    folder = tmp_path / "run/model-ema-0.08"
    found = safetensors_file.load(folder / "unet/diffusion_pytorch_model.safetensors")
    expected = reconstructed(tmp_path / "run", 0.08)
    for name, value in found.items():
        assert torch.equal(value, expected[f"unet.{name}"]), name
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in (tmp_path / "run/model").iterdir()
    }


def test_what_cannot_be_made_is_named(first_stage_recipe: FirstStage, tmp_path: Path):
    train(first_stage_recipe("run.steps=2"), tmp_path)
    with pytest.raises(UndustError, match=r"has no snapshots; .*run\.snapshot_every"):
        reconstructed(tmp_path, 0.08)
    with pytest.raises(UndustError, match=r"length: 0.3 is outside 0.01 … 0.2887"):
        reconstructed(tmp_path, 0.3)
