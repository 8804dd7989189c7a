"""undust lab: real measurements, but short ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from undust.diffusion.samplers import SAMPLERS
from undust.lab import samplers

Run = Callable[..., Any]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BUDGETS": (3,), "FLOW_STEPS": 6, "PATH_STEPS": 4}.items():
        monkeypatch.setattr(samplers, name, value)


pytestmark = pytest.mark.usefixtures("short")


def test_samplers(undust: Run, tiny_model: Path, here: Path):
    options = ("--model", tiny_model, "--schedule", "trailing", "--prompts", 1)
    done = undust("lab", "samplers", *options, "--json", "--out", "kept")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["schedule"], found["pictures"]) == ("trailing", 1)
    assert {curve["name"] for curve in found["samplers"]} == SAMPLERS.keys()
    page = (here / "kept/samplers.md").read_text("utf-8")
    assert "--schedule trailing --prompts 1 --out kept\n" in page
    assert "\n## Schedules, with the sampler deis\n" in page
    assert all(f"\n| {name} |" in page for name in SAMPLERS)
    assert (here / "kept/samplers.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_measured(undust: Run, monkeypatch: pytest.MonkeyPatch, tiny_model: Path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for arguments, said in (
        (("samplers", "--model", "absent"), "unknown model 'absent'"),
        (("samplers", "--model", tiny_model, "--schedule", "karas"), "did you mean 'karras'"),
        (("samplers", "--model", tiny_model, "--prompts", 0), "at least 1 is needed"),
        (("samplers", "--model", tiny_model, "--out", "kept"), "pip install 'undust[plots]'"),
        (("samplers", "--model", tiny_model, "--out", tiny_model / "model_index.json"), "a file"),
    ):
        done = undust("lab", *arguments)
        assert done.code == 2
        assert done.err.count("\n") == 1
        assert said in done.err


def test_help(undust: Run):
    assert "samplers" in undust("lab", "--help").out
    assert "undust lab samplers" in undust("lab", "samplers", "--help").out
