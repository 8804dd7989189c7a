"""The precision of a run is measured and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from undust.training import precision
from undust.training.first_stage import FirstStageConfig
from undust.training.precision import bfloat16_speed, resolved
from undust.training.run import prepare, train

Read = Callable[..., FirstStageConfig]


def test_the_measurement_is_made_once_and_disturbs_nothing():
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    ratio = bfloat16_speed()
    assert 0 < ratio < 1000
    assert bfloat16_speed() == ratio
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("ratio", "chosen"), [(0.5, "fp32"), (1.0, "fp32"), (2.2, "bf16")])
def test_the_faster_one_is_chosen_and_told(
    first_stage_recipe: Read, monkeypatch: pytest.MonkeyPatch, ratio: float, chosen: str
):
    monkeypatch.setattr(precision, "bfloat16_speed", lambda: ratio)
    recipe, note = resolved(first_stage_recipe("run.precision=auto"))
    assert recipe.run.precision == chosen
    assert note.startswith(f"run.precision auto: {chosen}, since bfloat16 takes ")
    asked, note = resolved(first_stage_recipe("run.precision=bf16"))
    assert asked.run.precision == "bf16"
    assert note == (
        "run.precision = bf16: bfloat16 takes 2.0 × float32's time here; auto or fp32 is faster"
        if ratio < 1
        else ""
    )
    assert resolved(first_stage_recipe("run.precision=fp32"))[1] == ""


@pytest.mark.parametrize(("ratio", "chosen"), [(0.5, "fp32"), (2.2, "bf16")])
def test_muon_is_as_fast_as_the_machine_allows(
    first_stage_recipe: Read, monkeypatch: pytest.MonkeyPatch, ratio: float, chosen: str
):
    """Also where the computation is in float32; a run that goes on keeps what it had."""
    monkeypatch.setattr(precision, "bfloat16_speed", lambda: ratio)
    recipe = first_stage_recipe("optimizer.kind=muon")
    assert resolved(recipe)[0].run.muon_precision == chosen
    assert resolved(recipe, {})[0].run.muon_precision == "bf16"  # of an earlier version
    for kept in ("fp32", "bf16"):
        assert resolved(recipe, {"muon_precision": kept})[0].run.muon_precision == kept
    assert resolved(first_stage_recipe())[0].run.muon_precision == "auto"  # of AdamW: no question


@pytest.mark.parametrize(("faster", "chosen"), [(True, "winograd"), (False, "direct")])
def test_the_faster_convolutions_are_chosen(
    first_stage_recipe: Read, monkeypatch: pytest.MonkeyPatch, faster: bool, chosen: str
):
    monkeypatch.setattr(precision, "winograd_trains_faster", lambda: faster)
    recipe = first_stage_recipe()
    assert resolved(recipe)[0].run.convolutions == chosen
    assert resolved(recipe, {})[0].run.convolutions == "direct"  # of an earlier version
    for kept in ("direct", "winograd"):
        assert resolved(recipe, {"convolutions": kept})[0].run.convolutions == kept
        asked = first_stage_recipe(f"run.convolutions={kept}")
        assert resolved(asked)[0].run.convolutions == kept
    for other in ("run.precision=bf16", "run.compile=true"):
        assert resolved(first_stage_recipe(other))[0].run.convolutions == "direct"


def test_a_run_that_goes_on_keeps_what_it_began_with(
    first_stage_recipe: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(precision, "bfloat16_speed", lambda: 2.0)
    recipe = first_stage_recipe("run.precision=auto", "run.steps=2")
    assert train(recipe, tmp_path)
    (state,) = sorted(tmp_path.glob("checkpoints/*/state.json"))
    assert json.loads(state.read_text("utf-8"))["recipe"]["run"]["precision"] == "bf16"
    monkeypatch.setattr(precision, "bfloat16_speed", lambda: 0.5)
    trainer, notes = prepare(recipe, tmp_path, resume=True)
    assert trainer.run.precision == "bf16"
    assert notes == []
