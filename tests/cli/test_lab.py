"""undust lab: real measurements, but short ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from undust.diffusion.samplers import SAMPLERS
from undust.lab import order, samplers

Run = Callable[..., Any]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "all_cases", lambda: [("euler", {}), ("lcm", {})])
    for name, value in {"BUDGETS": (3,), "FLOW_STEPS": 6, "PATH_STEPS": 4}.items():
        monkeypatch.setattr(samplers, name, value)


pytestmark = pytest.mark.usefixtures("short")


def test_order(undust: Run, here: Path):
    done = undust("lab", "order", "--out", "kept/here")
    assert done.code == 0, done.err
    assert "distilled" in done.out
    page = (here / "kept/here/order.md").read_text("utf-8")
    assert "undust lab order --out kept/here\n" in page
    assert "| euler | end | 1 | 1 | 1.00 | 1.00 |  |" in page


def test_order_as_json(undust: Run):
    done = undust("lab", "order", "--json")
    assert done.code == 0, done.err
    found = order.Orders.model_validate_json(done.out)
    assert [each.sampler for each in found.orders] == ["euler", "lcm"]
    assert found.orders[0].gaussian == pytest.approx(1, abs=0.15)


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
        (("order", "--model", "absent"), "unknown model 'absent'"),
        (("samplers", "--model", "absent"), "unknown model 'absent'"),
        (("samplers", "--model", tiny_model, "--schedule", "karas"), "did you mean 'karras'"),
        (("samplers", "--model", tiny_model, "--prompts", 0), "at least 1 is needed"),
        (("samplers", "--model", tiny_model, "--out", "kept"), "pip install undust[plots]"),
        (("samplers", "--model", tiny_model, "--out", tiny_model / "model_index.json"), "a file"),
    ):
        done = undust("lab", *arguments)
        assert done.code == 2
        assert done.err.count("\n") == 1
        assert said in done.err


def test_help(undust: Run):
    assert "order" in undust("lab", "--help").out
    for command in ("order", "samplers"):
        assert f"undust lab {command}" in undust("lab", command, "--help").out
