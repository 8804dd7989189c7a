"""The validation loss: comparable, exact with resume, and rising where a model overfits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch
from PIL import Image

from undust.datasets import image_folder
from undust.formats import safetensors_file
from undust.training import validation
from undust.training.diffusion import DiffusionConfig, DiffusionTask
from undust.training.first_stage import FirstStageConfig
from undust.training.loop import TrainingProgress
from undust.training.run import prepare, train
from undust.training.validation import ValidationHistory, validate

FirstStage = Callable[..., FirstStageConfig]
Diffusion = Callable[..., DiffusionConfig]
Contents = Callable[[Path], dict[str, bytes]]


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]


def test_it_is_the_mean_of_the_samples_whatever_the_seed_and_the_batch(
    diffusion_recipe: Diffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(validation, "MIN_DRAWS", 64)
    first = DiffusionTask(diffusion_recipe("captions.drop=0.5"), tmp_path)
    other = DiffusionTask(diffusion_recipe("captions.drop=0.5", "seed=1"), tmp_path)
    torch.nn.init.normal_(first.model.unet.conv_out.weight)
    other.modules.load_state_dict(first.modules.state_dict())
    assert first.validation and other.validation
    found = validate(first.validation, first.losses, 4, step=0)
    with torch.no_grad():
        each = [
            float(other.losses(replace(other.validation.batch(place, 1), step=7))["loss"])
            for place in range(64)  # two pictures are held out
        ]
    assert found == {"validation_loss": pytest.approx(mean(each), rel=1e-5)}
    assert validate(other.validation, other.losses, 7, step=0) == pytest.approx(found, rel=1e-5)


@pytest.fixture
def overfitting(
    diffusion_recipe: Diffusion, exact_first_stage: Path, tmp_path: Path
) -> Callable[..., DiffusionConfig]:
    """20 pictures of 8 px and as many captions, which a small network soon knows by heart."""
    folder = tmp_path / "twenty"
    folder.mkdir()
    chance = torch.Generator().manual_seed(0)
    table: list[dict[str, str]] = []
    for number in range(40):
        left, right = torch.randint(0, 256, (2, 3), generator=chance).tolist()
        picture = Image.new("RGB", (8, 8), tuple(left))
        picture.paste(tuple(right), (4, 0, 8, 8))
        name = f"{number:02}"
        picture.save(folder / f"{name}.png")
        split = "train" if number < 20 else "validation"
        table.append({"file_name": f"{name}.png", "text": name, "split": split})
    image_folder.write(folder, table)

    def recipe(*changes: str) -> DiffusionConfig:
        return diffusion_recipe(
            f"data.folder={folder}",
            f"first_stage={exact_first_stage}",
            "data.size=8",
            'captions.fields=["text"]',
            "captions.drop=0",
            "diffusion={process='flow'}",
            "unet.sample_size=4",
            "unet.block_out_channels=[16]",
            "unet.cross_attention_dim=16",
            "text_encoder.hidden_size=16",
            "optimizer.learning_rate=1e-2",
            "run.batch=20",
            "run.steps=1000",
            "run.validate_every=12",
            "run.checkpoint_every=1000",
            "run.sample_every=1000",
            *changes,
        )

    return recipe


def test_it_rises_while_the_training_loss_falls_and_stops_the_run(
    overfitting: Callable[..., DiffusionConfig], tmp_path: Path
):
    trainer, _ = prepare(overfitting("run.patience=4"), tmp_path / "out")
    averages: dict[int, torch.Tensor] = {}
    notes: list[str] = []

    def observe(progress: TrainingProgress) -> None:
        averages[progress.step] = trainer.ema.average["unet.conv_out.weight"].clone()
        notes.extend(progress.notes)

    assert trainer.train(observe)
    losses = {int(row["step"]): row["loss"] for row in rows(tmp_path / "out")}
    validation = {
        int(row["step"]): row["validation_loss"]
        for row in rows(tmp_path / "out")
        if "validation_loss" in row
    }
    lowest = min(validation, key=validation.__getitem__)
    last = max(validation)
    assert [*validation] == [*range(12, last + 1, 12)]
    assert last == lowest + 4 * 12 == trainer.step < 1000
    assert validation[last] > validation[lowest]
    trained = {step: mean(losses[k] for k in range(step - 11, step + 1)) for step in validation}
    assert trained[last] < trained[lowest]
    published = safetensors_file.load(
        tmp_path / "out/model/unet/diffusion_pytorch_model.safetensors"
    )
    assert torch.equal(published["conv_out.weight"], averages[lowest])
    turned, ended = notes
    assert turned.startswith(f"the validation loss was lowest at step {lowest} (")
    assert ended.startswith(f"validation loss: lowest {validation[lowest]:.5f} at step {lowest}, ")


def test_stopping_is_exact_with_resume(
    diffusion_recipe: Diffusion, tmp_path: Path, contents: Contents
):
    """A rate so high that the loss does not fall, in one run and in one of three parts."""
    changes = ("optimizer.learning_rate=0.3", "run.validate_every=1", "run.patience=3")
    recipe = diffusion_recipe("run.steps=50", "run.batch=16", *changes)
    assert train(recipe, tmp_path / "whole")
    end = len(rows(tmp_path / "whole"))
    assert 3 < end < 50

    class KilledError(Exception):
        pass

    def kill(step: int) -> Callable[[TrainingProgress], None]:
        def observe(progress: TrainingProgress) -> None:
            if progress.step == step:
                raise KilledError

        return observe

    for step in (end - 2, end):
        with pytest.raises(KilledError):
            train(recipe, tmp_path / "parts", resume=True, observe=kill(step))
    assert train(recipe, tmp_path / "parts", resume=True)
    for name in ("model", f"checkpoints/step-{end:08}"):
        assert contents(tmp_path / "parts" / name) == contents(tmp_path / "whole" / name)
    trainer, notes = prepare(recipe, tmp_path / "whole", resume=True)
    assert trainer.finished
    assert any(note.startswith("stopped after 3 validations without a lower") for note in notes)
    assert trainer.train(lambda _: None)
    assert train(
        diffusion_recipe(f"run.steps={end + 1}", "run.batch=16", *changes[:2]),
        tmp_path / "whole",
        resume=True,
    )
    assert rows(tmp_path / "whole")[-1]["step"] == end + 1


def test_without_held_out_pictures_there_is_none(first_stage_recipe: FirstStage, tmp_path: Path):
    shown: list[float | None] = []
    recipe = first_stage_recipe("data.held_out=0.3", "run.validate_every=4", "run.log_every=5")
    train(recipe, tmp_path / "a", observe=lambda progress: shown.append(progress.validation))
    found = {int(row["step"]): row for row in rows(tmp_path / "a")}
    assert [*found] == [4, 5, 6]
    assert "loss" not in found[4]
    assert {"validation_loss", "validation_pixel", "validation_kl"} <= found[4].keys()
    assert shown == [None] * 3 + [found[4]["validation_loss"]] * 2 + [found[6]["validation_loss"]]
    assert "validation_loss" not in found[5]


def test_a_loss_that_is_not_a_number_is_never_the_lowest():
    history = ValidationHistory(patience=2)
    assert not history.add(1, float("nan"))
    assert history.add(2, 1.0)
    assert not history.add(3, float("nan"))
    assert not history.exhausted
    assert not history.add(4, float("inf"))
    assert history.exhausted
