"""Stored measurements: facts that theory fixes, whatever was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import undust
from undust import explain
from undust.diffusion.prediction import PREDICTIONS

RESULTS = Path(explain.__file__).parent / "results"
ROUNDED = 2e-3  # four digits of two numbers


@pytest.fixture(scope="module")
def predictions() -> dict[str, Any]:
    return json.loads((RESULTS / "predictions.json").read_text("utf-8"))


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _numbers(each)
    elif not isinstance(value, str):
        yield value


def test_all_numbers_are_finite(predictions: dict[str, Any]) -> None:
    numbers = [*_numbers(predictions)]
    assert len(numbers) > 500
    assert all(map(math.isfinite, numbers))


def test_lists_have_an_entry_for_each_time_and_seed(predictions: dict[str, Any]) -> None:
    times, seeds = len(predictions["t"]), len(predictions["about"]["seeds"])
    assert len(predictions["sigma"]) == len(predictions["snr"]) == times
    for target in predictions["targets"].values():
        assert {len(each) for each in target.values()} == {times}
    over_time = {"x0_error", "epsilon_error", "loss", "loss_deviation"}
    over_time |= {"gradient_norm", "gradient_deviation"}
    for model in predictions["models"].values():
        distances = {"frechet_distance", "kernel_distance"}  # of the first seed's pictures
        assert all(len(model[name]) == 1 for name in distances)
        assert {len(model[name]) for name in model.keys() - distances} == {seeds}
        assert {len(row) for name in over_time for row in model[name]} == {times}
        for what in ("curve", "validation"):
            steps, losses = model[f"{what}_step"], model[f"{what}_loss"]
            assert [*map(len, steps)] == [*map(len, losses)]
            assert all(row[-1] == predictions["about"]["steps"] for row in steps)


def test_noise_levels_are_those_of_the_built_in_process(predictions: dict[str, Any]) -> None:
    sigma = torch.tensor(predictions["sigma"], dtype=torch.float64)
    process = undust.load("emoji").process
    torch.testing.assert_close(
        sigma, process.sigma(torch.tensor(predictions["t"])), rtol=ROUNDED, atol=0
    )
    snr = torch.tensor(predictions["snr"], dtype=torch.float64)
    torch.testing.assert_close(snr, sigma**-2, rtol=ROUNDED, atol=0)


def test_noise_has_mean_0_and_variance_1_at_every_time(predictions: dict[str, Any]) -> None:
    noise = predictions["targets"]["epsilon"]
    assert noise["mean"] == pytest.approx([0] * len(noise["mean"]), abs=5e-3)
    assert noise["variance"] == pytest.approx([1] * len(noise["mean"]), abs=5e-3)


def test_the_target_x0_is_the_same_at_every_time(predictions: dict[str, Any]) -> None:
    for what in ("mean", "variance"):
        assert {*predictions["targets"]["sample"][what]} == {predictions["latents"][what]}


def test_variance_of_v_is_a_mean_of_both(predictions: dict[str, Any]) -> None:
    """v = α·ε − s·x0 of independent ε and x0, with α² = 1/(1 + σ²) and s² = 1 − α²."""
    variance = predictions["latents"]["variance"]
    expected = [(1 + sigma**2 * variance) / (1 + sigma**2) for sigma in predictions["sigma"]]
    assert predictions["targets"]["v_prediction"]["variance"] == pytest.approx(expected, rel=5e-3)


def test_errors_are_one_error_in_several_units(predictions: dict[str, Any]) -> None:
    sigma = torch.tensor(predictions["sigma"], dtype=torch.float64)
    for name, model in predictions["models"].items():
        own = PREDICTIONS[name].scale(sigma) ** 2
        for x0, noise, loss in zip(
            model["x0_error"], model["epsilon_error"], model["loss"], strict=True
        ):
            error = torch.tensor(x0, dtype=torch.float64)
            assert noise == pytest.approx((error / sigma**2).tolist(), rel=ROUNDED)
            assert loss == pytest.approx((error / own).tolist(), rel=ROUNDED)


def test_pictures_are_a_row_for_each_prediction(predictions: dict[str, Any]) -> None:
    path = RESULTS / "predictions.png"
    assert path.stat().st_size < 60_000
    with Image.open(path) as picture:
        assert 64 <= picture.height // len(predictions["models"]) < 80
