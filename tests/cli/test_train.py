"""undust train: from a recipe to a model that paints."""

from __future__ import annotations

import json
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from undust.cli import main

Run = Callable[..., Any]


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
    assert f"passed over: {weights.relative_to(here)}" in done.err
    assert "steps 3 to 3" in done.err


def test_only_damaged_checkpoints_are_refused(undust: Run, here: Path, first_stage_recipe: Path):
    train = ("train", first_stage_recipe, "--out", "run")
    undust(*train)
    (here / "run/checkpoints/step-00000003/state.json").write_text("{")
    done = undust(*train, "--resume")
    assert done.code == 2
    assert "state.json" in done.err
    assert (here / "run/checkpoints/step-00000003/state.json").read_text() == "{"


def test_ctrl_c_saves_and_says_how_to_go_on(undust: Run, here: Path, first_stage_recipe: Path):
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
    command = shlex.split(last.partition("go on with: ")[2])
    assert command[0] == "undust"
    command = [part.replace("1000000", str(stopped_at + 1)) for part in command]
    assert main(command[1:]) == 0
    assert (here / f"my run/checkpoints/step-{stopped_at + 1:08}").is_dir()
