from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from undust.training import kinds, precision, starter

Run = Callable[..., Any]
SMALL = {"BATCH": 2, "FEWEST": 2, "PROBED": 1, "SHOWN": 2, "CLOSING_SECONDS": 60}


def test_a_folder_becomes_a_model(undust: Run, here: Path, monkeypatch: pytest.MonkeyPatch):
    """With the least steps, and few pictures of its sheet."""
    for name, value in SMALL.items():
        monkeypatch.setattr(starter, name, value)
    monkeypatch.setattr(precision, "ROUNDS", 1)
    (here / "mine").mkdir()
    for k in range(4):
        Image.new("RGB", (48, 60), (20 * k, 99, 200)).save(here / "mine" / f"{k}.png")
    made = undust("train", "mine", "--minutes", 1)
    assert made.code == 0, made.err
    assert made.out.split() == [
        "runs/mine/diffusion/model",
        "runs/mine/samples.png",
        "runs/mine/report.html",
    ]
    assert "4 pictures, the shorter side 48 pixels, without captions" in made.err
    assert Image.open("runs/mine/samples.png").size[0] > 2 * 64
    config = kinds.read(Path("runs/mine/diffusion.toml"))
    assert (config.kind, config.run.steps, config.data.size) == ("finetune", 2, 64)
    again = undust("train", "mine", "--minutes", 1)
    assert again.code == 2
    assert "--resume continues it" in again.err
    of_a_run = undust("train", "mine", "--out", "runs/mine/diffusion")
    assert of_a_run.code == 2
    assert "runs/mine/diffusion is the folder of a run" in of_a_run.err


def test_the_run_of_this_folder_has_its_name(undust: Run, here: Path):
    (here / "runs" / here.name).mkdir(parents=True)
    (here / "runs" / here.name / "first-stage.toml").touch()
    for folder in (".", "runs/.."):
        found = undust("train", folder)
        assert found.code == 2
        assert f"runs/{here.name} has an earlier run" in found.err
