"""The loop: going on, stopping at what is not a number, and what it writes down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.training import checkpoints
from undust.training.diffusion import DiffusionConfig
from undust.training.first_stage import FirstStageConfig
from undust.training.run import prepare, train

FirstStage = Callable[..., FirstStageConfig]
Diffusion = Callable[..., DiffusionConfig]
Contents = Callable[[Path], dict[str, bytes]]


def weights(out: Path) -> dict[str, torch.Tensor]:
    found, _ = checkpoints.newest(out / "checkpoints")
    assert found is not None
    return {**found.weights, **{f"average.{name}": value for name, value in found.average.items()}}


def test_longer_in_two_parts_is_as_long_in_one(
    first_stage_recipe: FirstStage, tmp_path: Path, contents: Contents
):
    """A run to step 4, resumed with a recipe of 7 steps, in the half precision of bfloat16."""
    for steps in (4, 7):
        recipe = first_stage_recipe(f"run.steps={steps}", "run.precision=bf16")
        train(recipe, tmp_path / "parts", resume=True)
    train(recipe, tmp_path / "whole")
    name = "checkpoints/step-00000007"
    assert contents(tmp_path / "parts" / name) == contents(tmp_path / "whole" / name)


def test_muon_goes_on_to_the_bit(diffusion_recipe: Diffusion, tmp_path: Path, contents: Contents):
    for steps in (2, 5):
        changes = ["optimizer.kind=muon", "run.precision=bf16"]
        recipe = diffusion_recipe(f"run.steps={steps}", *changes)
        train(recipe, tmp_path / "parts", resume=True)
    train(recipe, tmp_path / "whole")
    name = "checkpoints/step-00000005"
    assert contents(tmp_path / "parts" / name) == contents(tmp_path / "whole" / name)


def test_the_other_optimizer_cannot_go_on(diffusion_recipe: Diffusion, tmp_path: Path):
    train(diffusion_recipe("run.steps=2"), tmp_path)
    with pytest.raises(UndustError, match=r"optimizer\.kind was adamw, is muon"):
        train(diffusion_recipe("optimizer.kind=muon"), tmp_path, resume=True)


def test_the_model_is_the_average_and_not_the_last_weights(
    diffusion_recipe: Diffusion, tmp_path: Path
):
    train(diffusion_recipe(), tmp_path)
    published = safetensors_file.load(tmp_path / "model/unet/diffusion_pytorch_model.safetensors")
    held = weights(tmp_path)
    name = "conv_in.weight"
    assert torch.equal(published[name], held[f"average.unet.{name}"])
    assert not torch.equal(published[name], held[f"unet.{name}"])


@pytest.mark.parametrize(
    ("change", "step"), [("optimizer.learning_rate=1e30", 2), ("loss.kl=1e39", 1)]
)
def test_what_is_not_a_number_stops_the_run(
    change: str, step: int, first_stage_recipe: FirstStage, tmp_path: Path, contents: Contents
):
    """A rate that throws the weights out of float32, and a loss that is infinite from the start."""
    good = first_stage_recipe("run.steps=1")
    train(good, tmp_path)
    before = contents(tmp_path / "checkpoints")
    trainer, _ = prepare(
        first_stage_recipe(change, "optimizer.warm_up=0", "run.checkpoint_every=100"),
        tmp_path,
        resume=True,
    )
    steps: list[int] = []
    with pytest.raises(UndustError) as error:
        trainer.train(lambda progress: steps.append(progress.step))
    said = str(error.value)
    assert said.startswith(f"step {step + 1}: ")
    assert "loss" in said
    assert "not finite" in said
    assert str(tmp_path / "checkpoints") in said
    assert "\n" not in said
    assert steps == list(range(2, step + 1))
    assert contents(tmp_path / "checkpoints") == before
    assert all(value.isfinite().all() for value in trainer.parameters.values())


def test_a_diffusion_run_that_diverges_is_stopped_too(diffusion_recipe: Diffusion, tmp_path: Path):
    recipe = diffusion_recipe("optimizer.learning_rate=1e30", "optimizer.warm_up=0")
    with pytest.raises(UndustError, match=r"^step \d: .*loss.* not finite; the weights were left"):
        train(recipe, tmp_path)


def test_without_a_checkpoint_none_is_mentioned(first_stage_recipe: FirstStage, tmp_path: Path):
    with pytest.raises(UndustError, match=r"step 1: loss .*not finite") as error:
        train(first_stage_recipe("loss.kl=1e39"), tmp_path)
    assert "no checkpoint was made" in str(error.value)


def test_a_damaged_checkpoint_is_skipped_and_made_again(
    first_stage_recipe: FirstStage, tmp_path: Path, contents: Contents
):
    recipe = first_stage_recipe()
    train(recipe, tmp_path)
    whole = contents(tmp_path / "checkpoints/step-00000006")
    damaged = tmp_path / "checkpoints/step-00000006/average.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    trainer, refused = prepare(recipe, tmp_path, resume=True)
    assert trainer.step == 4
    assert [str(damaged) in line for line in refused] == [True]
    assert trainer.train(lambda _: None)
    assert contents(tmp_path / "checkpoints/step-00000006") == whole


def test_checkpoints_that_cannot_be_resumed_are_not_overwritten(
    first_stage_recipe: FirstStage, tmp_path: Path
):
    recipe = first_stage_recipe()
    train(recipe, tmp_path)
    with pytest.raises(UndustError, match="--resume continues it, another --out"):
        train(recipe, tmp_path)
    with pytest.raises(UndustError, match=r"autoencoder\.latent_channels was 4, is 8"):
        train(first_stage_recipe("autoencoder.latent_channels=8"), tmp_path, resume=True)
    for file in tmp_path.glob("checkpoints/*/state.json"):
        file.unlink()
    with pytest.raises(UndustError, match=r"state\.json .*no whole checkpoint to resume from"):
        train(recipe, tmp_path, resume=True)


def test_the_log_has_every_figure_once(first_stage_recipe: FirstStage, tmp_path: Path):
    """A run ends after step 3, its checkpoint is of step 2: step 3 is done twice, logged once."""
    recipe = first_stage_recipe("run.sample_every=4")

    class KilledError(Exception):
        pass

    def kill(step: int) -> None:
        if step == 4:
            raise KilledError

    with pytest.raises(KilledError):
        train(recipe, tmp_path, observe=lambda progress: kill(progress.step))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # what a killed run may leave
    train(recipe, tmp_path, resume=True)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["learning_rate"] for row in rows] == pytest.approx(
        [1e-3 * min(1, k / 2) for k in range(1, 7)]
    )
    assert {"loss", "pixel", "edges", "kl", "gradient_norm", "seconds"} <= set(rows[0])
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "step-00000004.png",
        "step-00000006.png",
    ]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    shown = {event.step: event.value for event in board.Scalars("loss")}
    assert shown == pytest.approx({row["step"]: row["loss"] for row in rows})
    assert len(board.Images("samples")) == 2


def test_progress_tells_every_step(first_stage_recipe: FirstStage, tmp_path: Path):
    told: list[tuple[int, int, Path | None]] = []
    train(
        first_stage_recipe("run.steps=3", "run.sample_every=2"),
        tmp_path,
        observe=lambda now: told.append((now.step, now.steps, now.preview)),
    )
    previews = [tmp_path / "samples" / f"step-{step:08}.png" for step in (2, 3)]
    assert told == [(1, 3, None), (2, 3, previews[0]), (3, 3, previews[1])]
    assert all(path.is_file() for path in previews)


def test_the_seed_decides_the_run(first_stage_recipe: FirstStage, tmp_path: Path):
    runs = [
        (train(first_stage_recipe("run.steps=2", f"seed={seed}"), out), weights(out))[1]
        for seed, out in ((0, tmp_path / "a"), (0, tmp_path / "b"), (1, tmp_path / "c"))
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not any(
        torch.equal(runs[0][name], runs[2][name]) for name in runs[0] if "weight" in name
    )
