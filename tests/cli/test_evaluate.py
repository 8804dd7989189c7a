"""undust evaluate: the figures of a tiny model on eight pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from undust.evaluation.report import evaluate
from undust.pipeline import load

Run = Callable[..., Any]


def test_json_is_the_report_of_the_library(undust: Run, tiny_model: Path, pictures: Path):
    options = ("--captions", 3, "--steps", 2, "--guidance", 1.5, "--seed", 4)
    done = undust("evaluate", tiny_model, pictures, *options, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    report = evaluate(load(tiny_model), pictures, captions=3, steps=2, guidance=1.5, seed=4)
    assert found | {"seconds": 0} == report.model_dump(mode="json") | {"seconds": 0}


def test_the_table_shows_every_figure(undust: Run, tiny_model: Path, pictures: Path):
    done = undust("evaluate", tiny_model, pictures, "--captions", 1, "--steps", 1)
    assert done.code == 0, done.err
    for name in ("right picture nearest", "among the nearest 5", "PSNR", "SSIM"):
        assert name in done.out
    assert "1 step of deis (karras), guidance 4, model tiny" in done.err


def test_what_cannot_be_measured(undust: Run, tiny_model: Path, here: Path):
    for data, said in (("absent", "absent"), (tiny_model / "unet", "neither")):
        done = undust("evaluate", tiny_model, data)
        assert done.code == 2
        assert done.err.count("\n") == 1
        assert said in done.err
