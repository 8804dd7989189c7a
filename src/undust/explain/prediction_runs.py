"""Stored measurements of small models trained alike to predict ε, x0 and v.

They are made by benchmarks/predictions.py, which describes the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from undust.diffusion.prediction import PREDICTIONS
from undust.explain.effect import Effect, mean_and_deviation
from undust.explain.figures import Figure, Frames, Line, LineChart, TextTable
from undust.explain.setup import enlarged
from undust.explain.texts import PartTexts
from undust.pictures import read_image
from undust.regular import read_text

RESULTS = Path(__file__).parent / "results"
SUFFIXES = ".json", ".png"
# Columns of the table and their digits; each has a number for each run.
COLUMNS = {
    "frechet_distance": 1,
    "even_error": 3,
    "roughness": 3,
    "gradient_noise_scale": 0,
    "clipped": 2,
}
CLAIMED = ("frechet_distance", "even_error", "roughness")


@dataclass(frozen=True)
class PredictionRuns:
    """about: how they were made; t, sigma: [T]; models: by prediction, a list over runs of each."""

    about: Mapping[str, Any]
    t: Sequence[float]
    sigma: Sequence[float]
    models: Mapping[str, Mapping[str, Any]]
    picture: Image.Image

    @classmethod
    def read(cls, stem: Path = RESULTS / "predictions") -> PredictionRuns:
        """The stored ones."""
        data, picture = (stem.with_suffix(suffix) for suffix in SUFFIXES)
        found = json.loads(read_text(data))
        about, t, sigma, models = (found[key] for key in ("about", "t", "sigma", "models"))
        return cls(about, t, sigma, models, read_image(picture))

    def even_errors(self, name: str) -> list[list[float]]:
        """Root mean square errors of each run over t, as errors of v: of one size at every t."""
        scale = PREDICTIONS["v_prediction"].scale(torch.tensor(self.sigma).double())
        rows = torch.tensor(self.models[name]["x0_error"]).double()
        return (rows.sqrt() / scale.abs()).tolist()

    def values(self, name: str, column: str) -> list[float]:
        """A number of each run."""
        if column == "even_error":
            return [sum(row) / len(row) for row in self.even_errors(name)]
        return self.models[name][column]


def figures(runs: PredictionRuns, short: Mapping[str, str], say: PartTexts) -> list[Figure]:
    """Pictures, errors over t and a table; short: the signs of the predictions."""
    height = runs.picture.height // len(runs.models)
    rows = [
        enlarged(runs.picture.crop((0, n * height, runs.picture.width, (n + 1) * height)))
        for n in range(len(runs.models))
    ]
    errors = {name: torch.tensor(runs.even_errors(name)) for name in runs.models}
    return [
        Frames(
            say("runs"),
            [say("run_of", output=short[name]) for name in runs.models],
            rows,
            say("runs_alt"),
            "buttons",
            note=say("runs_note", **_numbers(runs.about)),
        ),
        LineChart(
            say("runs_error"),
            say("t"),
            say("errors_unit"),
            [
                Line(short[name], runs.t, each.mean(0).tolist(), each.std(0).tolist())
                for name, each in errors.items()
            ],
            log_y=True,
            note=say("runs_error_note"),
        ),
        TextTable(
            say("runs_table"),
            [say("output"), *(say(f"column_{column}") for column in COLUMNS)],
            [
                [short[name], *(_cell(runs.values(name, key), n) for key, n in COLUMNS.items())]
                for name in runs.models
            ],
            say("runs_table_note"),
        ),
    ]


def effects(runs: PredictionRuns, say: PartTexts) -> list[Effect]:
    """x0 in place of ε, paired over the runs, which have the same weights and noise at first.

    Of what was measured of several runs.
    """
    return [
        Effect(
            f"runs_{key}",
            say(f"runs_{key}"),
            runs.values("sample", key),
            runs.values("epsilon", key),
            "higher",
            COLUMNS[key],
        )
        for key in CLAIMED
        if len(runs.values("sample", key)) > 1
    ]


def _numbers(about: Mapping[str, Any]) -> dict[str, Any]:
    names = ("weights", "steps", "batch", "generated", "compared")
    return {"runs": len(about["seeds"]), **{name: f"{about[name]:,}" for name in names}}


def _cell(values: Sequence[float], digits: int) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"
