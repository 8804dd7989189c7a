"""A fault at every call that changes the disk while a run saves: never a broken checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import FaultyDisk
from undust.errors import UndustError
from undust.formats.files import restore
from undust.training import checkpoints
from undust.training.first_stage import FirstStageConfig
from undust.training.loop import Trainer
from undust.training.run import prepare, train

Contents = Callable[[Path], dict[str, bytes]]
FirstStage = Callable[..., FirstStageConfig]
EVERY = "UNDUST_EVERY_WRITE"  # environment: faults at every write, which takes a minute
WRITES = 40  # of so many writes, one fails
RESUMED = 4  # of the states that faults leave, this many are resumed to the end
SMALL = ("autoencoder.block_out_channels=[4]", "data.crop=4")


def advanced(recipe: FirstStageConfig, out: Path, step: int) -> Trainer:
    """A run with a checkpoint of step 2, at a later step that is not saved."""
    train(recipe.model_copy(update={"run": recipe.run.model_copy(update={"steps": 2})}), out)
    trainer, _ = prepare(recipe, out, resume=True)
    while trainer.step < step:
        trainer.advance()
    assert trainer._lock
    trainer._lock.release()
    return trainer


def plain(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without the workspaces that could not be removed."""
    return {name: content for name, content in files.items() if ".undust-" not in name}


@pytest.mark.parametrize("lasting", [False, True], ids=["an error", "the death of the process"])
def test_a_fault_at_every_call(
    lasting: bool, first_stage_recipe: FirstStage, tmp_path: Path, contents: Contents
):
    recipe, out, before = first_stage_recipe(*SMALL), tmp_path / "out", tmp_path / "before"
    train(recipe, tmp_path / "whole")
    end = contents(tmp_path / "whole/checkpoints/step-00000006")
    trainer = advanced(recipe, out, 4)
    shutil.copytree(out, before)
    healthy = FaultyDisk(-1, lasting=False)
    with healthy.used():
        trainer.save()
    assert {"open", "write", "fsync", "replace", "rename", "mkdir"} <= set(healthy.log)
    models = contents(before / "model"), contents(out / "model")
    assert models[0] != models[1]
    saved = {step: contents(out / f"checkpoints/step-{step:08}") for step in (2, 4)}
    outcomes: set[int] = set()
    apart = 1 if os.environ.get(EVERY) else WRITES
    numbers = [
        number
        for number, name in enumerate(healthy.log, 1)
        if name != "write" or number % apart == 0
    ]
    for number in numbers:
        shutil.rmtree(out)
        shutil.copytree(before, out)
        disk = FaultyDisk(number, lasting=lasting)
        where = f"call {number} of {healthy.calls}: {healthy.log[number - 1]}"
        with disk.used():
            try:
                trainer.save()
            except UndustError as error:
                assert "Input/output error" in str(error), where
        if lasting:
            disk.cut_power(out)
        restore(out / "model")
        found, refused = checkpoints.newest(out / "checkpoints")
        assert found, where
        assert refused == [], where
        for path in (out / "checkpoints").glob("step-*"):
            assert plain(contents(path)) == saved[checkpoints.load(path).step], where
        model = plain(contents(out / "model"))
        assert model in models, where
        assert found.step == 2 or model == models[1], where
        outcomes.add(found.step)
        if number in numbers[:: len(numbers) // RESUMED]:
            assert train(recipe, out, resume=True)
            assert contents(out / "checkpoints/step-00000006") == end, where
    assert outcomes == {2, 4}
