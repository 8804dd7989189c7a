"""undust train: from a recipe to a model that paints."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from undust.cli import main
from undust.evaluation.first_stage import first_stage_figures, reconstruction
from undust.evaluation.pictures import PictureSet
from undust.formats.components import load_first_stage
from undust.formats.locks import FileLock

Run = Callable[..., Any]
SOURCE = Path(__file__).parents[2] / "src"


def test_the_two_kinds_in_turn(
    undust: Run, here: Path, first_stage_recipe: Path, diffusion_recipe: Path
):
    first = undust("train", first_stage_recipe)
    assert first.code == 0, first.err
    assert first.out == "runs/tiny-stage/model\n"
    assert "first-stage" in first.err
    assert "3/3 steps: loss" in first.err
    second = undust("train", diffusion_recipe, "--out", "mine")
    assert second.code == 0, second.err
    assert "undust generate 'grey 0' --model mine/model" in second.err
    assert undust("generate", "grey 2", "--model", "mine/model", "--steps", 1).code == 0

    facts = json.loads(undust("inspect", "mine", "--json").out)
    assert (facts["kind"], facts["trains"], facts["steps"]) == ("training run", "diffusion", 3)
    assert [(row["step"], row["state"]) for row in facts["checkpoints"]] == [(3, "whole")]
    (row,) = [json.loads(line) for line in Path("mine/log.jsonl").read_text().splitlines()]
    assert (facts["step"], facts["loss"]) == (3, round(row["loss"], 6))
    assert facts["model"] == "mine/model"
    assert facts["recipe"]["unet"]["block_out_channels"] == [8, 16]
    assert undust("inspect", "mine").code == 0
    checkpoint = json.loads(undust("inspect", "mine/checkpoints/step-00000003", "--json").out)
    assert (checkpoint["kind"], checkpoint["step"]) == ("checkpoint", 3)
    assert checkpoint["recipe"]["kind"] == "diffusion"


def test_earlier_checkpoints_are_not_lost(undust: Run, here: Path, first_stage_recipe: Path):
    train = ("train", first_stage_recipe, "--out", "run")
    undust(*train)
    again = undust(*train)
    assert again.code == 2
    assert "--resume" in again.err
    longer = undust(*train, "--resume", "--set", "run.steps=5")
    assert longer.code == 0
    assert "steps 4 to 5" in longer.err
    steps = [json.loads(line)["step"] for line in Path("run/log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]


def test_a_damaged_checkpoint_is_named(undust: Run, here: Path, first_stage_recipe: Path):
    train = ("train", first_stage_recipe, "--out", "run", "--set", "run.checkpoint_every=1")
    undust(*train)
    weights = here / "run/checkpoints/step-00000003/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    done = undust(*train, "--resume")
    assert done.code == 0
    assert f"skipped: {weights.relative_to(here)}" in done.err
    assert "steps 3 to 3" in done.err


def test_only_damaged_checkpoints_are_refused(undust: Run, here: Path, first_stage_recipe: Path):
    train = ("train", first_stage_recipe, "--out", "run")
    undust(*train)
    (here / "run/checkpoints/step-00000003/state.json").write_text("{")
    done = undust(*train, "--resume")
    assert done.code == 2
    assert "state.json" in done.err
    assert (here / "run/checkpoints/step-00000003/state.json").read_text() == "{"


def test_ctrl_c_saves_and_says_how_to_continue(undust: Run, here: Path, first_stage_recipe: Path):
    def press() -> None:
        while not (here / "my run/log.jsonl").exists() or not (
            here / "my run/log.jsonl"
        ).read_text().count("\n"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    done = undust("train", first_stage_recipe, "--out", "my run", "--set", "run.steps=1000000")
    assert done.code == 130
    *_, last = done.err.splitlines()
    assert last.startswith("undust: stopped and saved at step ")
    stopped_at = int(last.split("at step ")[1].split(";")[0])
    command = shlex.split(last.partition("continue with: ")[2])
    assert command[0] == "undust"
    command = [part.replace("1000000", str(stopped_at + 1)) for part in command]
    assert main(command[1:]) == 0
    assert (here / f"my run/checkpoints/step-{stopped_at + 1:08}").is_dir()


def test_the_second_start_is_refused(undust: Run, here: Path, first_stage_recipe: Path):
    train = ("train", first_stage_recipe, "--out", "run")
    (here / "run").mkdir()
    lock = FileLock(here / "run/run.lock")
    for more in ((), ("--resume",)):
        second = undust(*train, *more)
        assert second.code == 2
        last = second.err.splitlines()[-1]
        assert last.startswith(f"undust: run is in use: process {os.getpid()} on ")
    lock.release()
    assert undust(*train).code == 0


def test_a_run_in_its_own_data(undust: Run, here: Path, first_stage_recipe: Path, pictures: Path):
    """Its previews are no data, so that it can be resumed, and trained again."""
    shutil.copytree(pictures, here / "own")
    (here / "own/metadata.jsonl").unlink()
    train = ("train", first_stage_recipe, "--set", "data.folder=own", "--out", "own/run")
    assert undust(*train).code == 0
    assert [*(here / "own/run/samples").glob("*.png")]
    longer = undust(*train, "--set", "run.steps=4", "--resume")
    assert longer.code == 0, longer.err
    assert "not used: 1: run/ (" in longer.err
    assert "pictures  8" in undust("data", "check", "own").out


def test_what_changed_is_told(undust: Run, here: Path, first_stage_recipe: Path):
    train = ("train", first_stage_recipe, "--out", "run", "--resume")
    first = undust(*train)
    assert "run has no checkpoint to resume from: it starts at step 1" in first.err
    again = undust(*train)
    assert again.code == 0
    assert "all 3 steps are done" in again.err
    longer = undust(*train, "--set", "run.steps=4", "--set", "optimizer.learning_rate=1e-4")
    assert longer.code == 0
    line = "changed since step 3: optimizer.learning_rate 0.001 → 0.0001, run.steps 3 → 4"
    assert line in longer.err
    fewer = undust(*train, "--set", "run.steps=2")
    assert fewer.code == 0
    assert "run.steps is 2, but 4 are done" in fewer.err
    other = undust(*train, "--set", "seed=1")
    assert other.code == 2
    assert "seed was 0, is 1" in other.err.splitlines()[-1]
    rate = ("--set", "optimizer.learning_rate=1e-4")
    mistyped = undust("train", first_stage_recipe, *rate, "--out", "rnu", "--resume")
    assert mistyped.code == 2
    assert "rnu does not exist; run is at step 4 of this recipe" in mistyped.err
    assert not (here / "rnu").exists()


def test_a_folder_that_is_moved_in_mid_run(undust: Run, here: Path, first_stage_recipe: Path):
    """In a process of its own, whose every thread would show in its stderr."""
    command = [sys.executable, "-m", "undust", "train", str(first_stage_recipe), "--out", "run"]
    running = subprocess.Popen(
        [*command, "--set", "run.steps=1000000"], stderr=subprocess.PIPE, text=True
    )
    while not (here / "run/log.jsonl").exists() or not (here / "run/log.jsonl").read_text():
        time.sleep(0.01)
    (here / "run").rename(here / "moved")
    _, said = running.communicate(timeout=60)
    assert running.returncode == 2
    *_, last = said.splitlines()
    assert last.startswith("undust: run was moved or removed while a run trained in it")
    assert "Traceback" not in said
    assert not (here / "run").exists()


def test_a_first_stage_alone_is_measured(
    undust: Run, here: Path, first_stage_recipe: Path, pictures: Path
):
    trained = undust("train", first_stage_recipe, "--out", "run")
    assert f"undust evaluate run/model {pictures}" in trained.err
    done = undust("evaluate", "run/model", pictures, "--features", "none", "--perceptual", "none")
    assert done.code == 0, done.err
    assert done.out.count("first stage: ") == 2
    found = json.loads(undust("evaluate", "run/model", pictures, "--json").out)
    paths = sorted(pictures.glob("*.png"))
    set_of_pictures = PictureSet.of_files(paths, (16, 16))
    expected = reconstruction(
        first_stage_figures(load_first_stage(here / "run/model"), set_of_pictures)
    )
    assert found["first_stage"] == expected.model_dump()
    assert (found["size"], found["first_stage_on"]) == ([16, 16], "pictures")
    assert found["model_hash"] == json.loads(undust("inspect", "run/model", "--json").out)["hash"]


def test_the_loss_shown_is_a_mean(undust: Run, here: Path, first_stage_recipe: Path):
    done = undust("train", first_stage_recipe, "--out", "run")
    losses = [json.loads(line)["loss"] for line in Path("run/log.jsonl").read_text().splitlines()]
    assert f"3/3 steps: loss {sum(losses) / 3:.4f}" in done.err


@pytest.mark.skipif(os.name == "nt", reason="there are no such locales")
@pytest.mark.parametrize("key", ["data", "first_stage", "prompt"])
def test_letters_that_the_locale_lacks(
    key: str, here: Path, diffusion_recipe: Path, tiny_model: Path
):
    """A command line in UTF-8 where the encoding is ASCII: the error names the cause."""
    command = {
        "data": ["data", "check", "고양이"],
        "first_stage": ["train", diffusion_recipe, "--set", "first_stage=고양이"],
        "prompt": ["generate", "고양이", "--model", tiny_model],
    }[key]
    done = subprocess.run(
        [sys.executable, "-m", "undust", *command],
        env={
            **os.environ,
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONPATH": str(SOURCE),
        },
        capture_output=True,
        check=False,
    )
    *_, last = done.stderr.decode().splitlines()
    assert done.returncode == 2
    assert "the locale's encoding, ascii, lacks some letters; PYTHONUTF8=1 sets UTF-8" in last
