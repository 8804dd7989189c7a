"""Figures and effects of stored runs, on a file that is made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from undust.explain import prediction_runs
from undust.explain.figures import Frames, LineChart, TextTable
from undust.explain.parts.prediction import NAMES
from undust.explain.prediction_runs import PredictionRuns
from undust.explain.texts import Translation

SIGMA = [0.5, 1.0, 2.0]
SAY = Translation("en").part("prediction")


def _model(error: float, distance: float) -> dict[str, Any]:
    """Two runs, whose error of v is the same at every level."""
    own = [error**2 * sigma**2 / (1 + sigma**2) for sigma in SIGMA]
    numbers = {key: [0.5, 0.7] for key in prediction_runs.COLUMNS if key != "even_error"}
    return {**numbers, "x0_error": [own, own], "frechet_distance": [distance, distance + 1]}


@pytest.fixture
def runs(tmp_path: Path) -> PredictionRuns:
    stem = tmp_path / "predictions"
    models = {name: _model(0.1 * k, 10.0 * k) for k, name in enumerate(NAMES, 1)}
    about = {"seeds": [0, 1], "weights": 10**6, "steps": 100, "batch": 8}
    found = {"about": about, "t": [1, 2, 3], "sigma": SIGMA, "models": models}
    found["about"] |= {"generated": 10, "compared": 20}
    stem.with_suffix(".json").write_text(json.dumps(found), "utf-8")
    Image.new("RGB", (128, 3 * 64)).save(stem.with_suffix(".png"))
    return PredictionRuns.read(stem)


def test_what_was_measured_once_has_no_spread():
    """The stored runs: the distance of generated pictures is of the first seed alone."""
    stored = PredictionRuns.read()
    _, _, table = prediction_runs.figures(stored, NAMES, SAY)
    assert isinstance(table, TextTable)
    assert "±" not in table.rows[0][1]
    assert "±" in table.rows[0][2]
    found = prediction_runs.effects(stored, SAY)
    assert [effect.name for effect in found] == ["runs_even_error", "runs_roughness"]


def test_errors_are_in_the_unit_of_v(runs: PredictionRuns):
    for k, name in enumerate(NAMES, 1):
        assert runs.even_errors(name) == [pytest.approx([0.1 * k] * 3)] * 2
        assert runs.values(name, "even_error") == pytest.approx([0.1 * k] * 2)


def test_a_row_a_line_and_a_table_row_for_each(runs: PredictionRuns):
    pictures, chart, table = prediction_runs.figures(runs, NAMES, SAY)
    assert isinstance(pictures, Frames)
    assert [image.size for image in pictures.images] == [(256, 128)] * 3
    assert isinstance(chart, LineChart)
    assert chart.names == [*NAMES.values()]
    assert isinstance(table, TextTable)
    assert [row[:2] for row in table.rows] == [
        ["ε", "10.5 ± 0.7"],
        ["x0", "20.5 ± 0.7"],
        ["v", "30.5 ± 0.7"],
    ]


def test_effects_are_pairs_of_runs(runs: PredictionRuns):
    distance, error, roughness = prediction_runs.effects(runs, SAY)
    assert distance.difference == (10, 0)
    assert error.difference == (pytest.approx(0.1), pytest.approx(0, abs=1e-9))
    assert roughness.difference == (0, 0)
