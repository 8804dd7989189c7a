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
from undust.training import checkpoints, kinds
from undust.training.loop import Trainer
from undust.training.run import prepare

Contents = Callable[[Path], dict[str, bytes]]
EVERY = "UNDUST_EVERY_WRITE"  # environment: faults at every call, which takes minutes
SAMPLED = 3  # without it at about so many calls of each name
RESUMED = 2  # of the states that faults leave, this many are resumed to the end
CASES: dict[str, list[str]] = {
    "first-stage": ["autoencoder.block_out_channels=[4]", "data.crop=4"],
    "diffusion": ['labels.column="concept"'],
}
FOLDERS = {"scheduler", "text_encoder", "tokenizer", "unet", "vae"}  # of the diffusion model


def chosen(log: list[str], offset: int) -> list[int]:
    """The numbers of the calls that fail, one after another: of each name, and the last."""
    if os.environ.get(EVERY):
        return [*range(1, len(log) + 1)]
    calls: dict[str, list[int]] = {}
    for number, name in enumerate(log, 1):
        calls.setdefault(name, []).append(number)
    steps = {name: -(-len(numbers) // SAMPLED) for name, numbers in calls.items()}
    sampled = [calls[name][offset % step :: step] for name, step in steps.items()]
    return sorted({len(log), *(number for numbers in sampled for number in numbers)})


def advanced(recipe: kinds.AnyTrainingConfig, out: Path, step: int) -> Trainer:
    """A run from its newest checkpoint to a step that is not saved."""
    trainer, _ = prepare(recipe, out, resume=True)
    while trainer.step < step:
        trainer.advance()
    assert trainer._lock
    trainer._lock.release()
    return trainer


def plain(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without the workspaces that could not be removed."""
    return {name: content for name, content in files.items() if ".undust-" not in name}


@pytest.mark.parametrize("kind", CASES)
def test_a_fault_at_every_call(
    kind: str, write_recipe: Callable[[str], Path], tmp_path: Path, contents: Contents
):
    """Of the second save of a run, which removes the first checkpoint.

    Faults are an error, and the death of the process.
    """
    recipe = kinds.read(write_recipe(kind), [*CASES[kind], "run.keep=1"])
    out, before = tmp_path / "out", tmp_path / "before"
    end = contents(advanced(recipe, tmp_path / "whole", 6).save())
    advanced(recipe, out, 2).save()
    trainer = advanced(recipe, out, 4)
    shutil.copytree(out, before)
    healthy = FaultyDisk(-1, lasting=False)
    with healthy.used():
        trainer.save()
    assert {"open", "write", "fsync", "replace", "rename", "mkdir"} <= set(healthy.log)
    models = contents(before / "model"), contents(out / "model")
    assert models[0].keys() == models[1].keys()
    assert models[0] != models[1]
    if kind == "diffusion":
        assert {path.name for path in (out / "model").iterdir()} == {"model_index.json", *FOLDERS}
        assert b"id2label" in models[1]["model_index.json"]
    states = {
        f"step-{step:08}": contents(folder / f"checkpoints/step-{step:08}")
        for step, folder in ((2, before), (4, out))
    }
    for lasting in (False, True):
        steps: set[int] = set()
        numbers = chosen(healthy.log, lasting)
        for number in numbers:
            shutil.rmtree(out)
            shutil.copytree(before, out)
            disk = FaultyDisk(number, lasting=lasting)
            where = f"{lasting=}, call {number} of {healthy.calls}: {healthy.log[number - 1]}"
            with disk.used():
                try:
                    trainer.save()
                except UndustError as error:
                    assert "Input/output error" in str(error), where
            if lasting:
                disk.cut_power(out)
            restore(out / "model")
            for path in (out / "checkpoints").glob("step-*"):
                assert plain(contents(path)) == states[path.name], where
            found, refused = checkpoints.newest(out / "checkpoints")
            assert found, where
            assert refused == [], where
            model = plain(contents(out / "model"))
            assert model in models, where
            assert found.step == 2 or model == models[1], where
            steps.add(found.step)
            if number in numbers[:: len(numbers) // RESUMED]:
                assert contents(advanced(recipe, out, 6).save()) == end, where
        assert steps == {2, 4}
