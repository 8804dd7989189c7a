"""What is kept of a measurement."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from undust.errors import UndustError
from undust.lab import page
from undust.lab.samplers import Comparison, Curve, SamplerRun


def test_a_markdown_table():
    assert page.table(["name", "error>"], [["a|b", 0.5]]) == (
        "| name | error |\n| --- | ---: |\n| a\\|b | 0.5 |\n"
    )


def test_a_page_has_the_command_that_makes_it(tmp_path: Path):
    page.write(tmp_path / "it.md", "It", "undust lab order", ["one\n", "two"])
    text = (tmp_path / "it.md").read_text("utf-8")
    assert text == "# It\n\n```sh\nundust lab order\n```\n\none\n\ntwo\n"


def test_a_plot_is_a_picture(tmp_path: Path):
    runs = tuple(SamplerRun(calls=n, steps=n, error=1 / n) for n in (5, 10))
    found = Comparison(
        model="tiny",
        model_hash="0",
        pictures=1,
        guidance=1,
        size=1,
        schedule="karras",
        sampler="euler",
        samplers=(
            *(Curve(name=f"flow {k}", against="flow", runs=runs) for k in range(25)),
            Curve(name="path", against="path", runs=runs),
            Curve(name="none", against=None),
        ),
        schedules=(Curve(name="karras", against="flow", runs=runs),),
    )
    page.plot(found, tmp_path / "it.png")
    with Image.open(tmp_path / "it.png") as picture:
        assert picture.size == (1600, 700)
        extremes = picture.convert("L").getextrema()
    assert extremes[0] < 100 < extremes[1]  # something is drawn


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch):
    page.require_matplotlib()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UndustError, match=r"pip install 'undust\[plots\]'"):
        page.require_matplotlib()
