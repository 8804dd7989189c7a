"""Engines of a model: the same pictures, whose recipes say which engine computed them."""

from __future__ import annotations

import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import undust
from undust.cli import main
from undust.engines import probe, registry, winograd
from undust.errors import UndustError
from undust.formats.recipe_png import read_recipe
from undust.pipeline import LatentDiffusion

has_int8 = pytest.mark.skipif(not probe.int8_is_faster(), reason="8 bits are not faster here")
PROMPTS = ["a smiling cat", "빨간 하트"]
STEPS = {"steps": 4, "seed": 1}


@pytest.fixture(scope="module")
def models() -> dict[str, LatentDiffusion]:
    return {engine: undust.load("emoji", engine=engine) for engine in ("torch", "cpu")}


def levels_apart(one: LatentDiffusion, other: LatentDiffusion, **options: object) -> int:
    """The largest difference of the pictures of two models, in levels of 255."""
    pairs = zip(
        *(model.generate(PROMPTS, **STEPS, **options) for model in (one, other)), strict=True
    )
    images = ((np.asarray(a.image, int), np.asarray(b.image, int)) for a, b in pairs)
    return max(int(np.abs(a - b).max()) for a, b in images)


def test_pictures_are_the_same_to_one_level(models: dict[str, LatentDiffusion]):
    assert levels_apart(*models.values()) <= 1


def test_latents_differ_by_rounding_only(models: dict[str, LatentDiffusion]):
    ours, theirs = (model.generate(PROMPTS[0], **STEPS)[0].latent for model in models.values())
    assert 0 < (ours - theirs).norm() / theirs.norm() < 1e-4


@pytest.mark.parametrize("merge", [True, False])
def test_loras_are_applied(merge: bool, tmp_path: Path):
    network = undust.load("emoji").unet
    torch.manual_seed(0)
    lora: dict[str, torch.Tensor] = {}
    for name, conv in network.named_modules():
        if name.endswith(("conv1", "to_q")):
            weight = conv.get_parameter("weight")
            key = f"unet.{name}.lora"
            lora[f"{key}_A.weight"] = torch.randn(2, *weight.shape[1:]) / weight[0].numel() ** 0.5
            lora[f"{key}_B.weight"] = torch.randn(len(weight), 2, *[1] * (weight.ndim - 2)) / 8
    save_file(lora, tmp_path / "lora.safetensors")
    models = [undust.load("emoji", engine=engine, merge_loras=merge) for engine in ("torch", "cpu")]
    assert levels_apart(*models, loras=[tmp_path / "lora.safetensors"]) <= 1
    plain = models[1].generate(PROMPTS[0], **STEPS)[0]
    with_lora = models[1].generate(PROMPTS[0], **STEPS, loras=[tmp_path / "lora.safetensors"])[0]
    assert plain.image != with_lora.image


def test_the_recipe_says_the_engine(models: dict[str, LatentDiffusion], tmp_path: Path):
    plain, fast = models.values()
    (picture,) = fast.generate(PROMPTS[0], **STEPS)
    path = picture.save(tmp_path / "cat.png")
    assert read_recipe(path)["engine"] == "cpu"
    assert fast.rerun(picture.recipe).image == picture.image
    assert plain.rerun(picture.recipe).image == picture.image
    (other,) = plain.generate(PROMPTS[0], **STEPS)
    assert "engine" not in other.recipe.model_dump()  # as in recipes from before there were engines
    assert fast.rerun(other.recipe).image == other.image
    assert picture.latent.ne(other.latent).any()


@pytest.mark.parametrize("engine", ["torch", "cpu", pytest.param("int8", marks=has_int8)])
def test_rerun_uses_the_engine_of_the_picture(engine: str, tmp_path: Path):
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    options = ("--steps", "4", "--seed", "1", "--engine", engine)
    assert main(["generate", PROMPTS[0], *options, "--out", str(first)]) == 0
    assert main(["rerun", str(first), "--out", str(again)]) == 0
    assert first.read_bytes() == again.read_bytes()


def test_auto_is_the_fastest_exact_one():
    assert undust.load("emoji").engine == "cpu"
    assert undust.load("emoji", dtype="bf16").engine == "cpu"


def test_a_model_that_gains_nothing_stays_with_torch(tiny_model: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert undust.load(tiny_model).engine == "torch"
    with pytest.warns(RuntimeWarning, match="cpu is not used: it has nothing to offer for this"):
        assert undust.load(tiny_model, engine="cpu").engine == "torch"


def test_an_engine_that_cannot_be_used_is_replaced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probe, "int8_is_faster", lambda: False)
    with pytest.warns(RuntimeWarning, match="int8 is not used: 8-bit .*; cpu takes its place"):
        assert undust.load("emoji", engine="int8").engine == "cpu"


def test_a_model_is_saved_after_its_weights_were_stored_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(winograd, "KEPT", 0)
    model = undust.load("emoji", engine="cpu")
    (before,) = model.generate(PROMPTS[0], **STEPS)
    assert not all(weight.is_contiguous() for weight in model.unet.parameters())
    model.save(tmp_path / "model")
    (after,) = undust.load(tmp_path / "model", engine="cpu").generate(PROMPTS[0], **STEPS)
    assert before.image == after.image


def test_a_network_that_gains_nothing_is_not_kept():
    engine = registry.Prepared("cpu")
    network = torch.nn.Conv2d(3, 3, 3, padding=1)
    assert engine(network) is network
    alive = weakref.ref(network)
    del network
    assert alive() is None


def test_loading_draws_no_random_numbers():
    probe.forget()
    before = torch.get_rng_state()
    undust.load("emoji")
    probe.fastest_dtype()
    assert torch.equal(torch.get_rng_state(), before)


def test_another_model_beside_it_may_gain_nothing(models: dict[str, LatentDiffusion], tiny_model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert models["cpu"].load_other(str(tiny_model)).engine == "torch"
        assert models["torch"].load_other("emoji").engine == "torch"


def test_an_unknown_engine_is_named():
    with pytest.raises(UndustError, match="unknown engine 'torhc'; did you mean 'torch'"):
        undust.load("emoji", engine="torhc")


def test_engines_are_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["engines"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in registry.ENGINES)
