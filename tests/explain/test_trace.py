"""A trace is the generation that it records: the same picture, its estimates, its guidance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import undust
from undust.diffusion.process import PROCESSES
from undust.errors import UndustError
from undust.explain import trace
from undust.generation.guided import with_adapters
from undust.pipeline import LatentDiffusion
from variants import build

PROMPT = "a big cat"
SHORT: dict[str, Any] = {"seed": 3, "steps": 3, "size": 64}


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> LatentDiffusion:
    folder = tmp_path_factory.mktemp("models") / "sd1"
    build("sd1").save(folder)
    return undust.load(folder, engine="torch")


@pytest.mark.parametrize("engine", ["torch", "cpu"])
def test_the_built_in_model(engine: str):
    """The picture before, traced and after is one."""
    model = undust.load("emoji", engine=engine)
    options: dict[str, Any] = {"seed": 1, "steps": 2}
    before = model.generate("빨간 하트", **options)[0]
    found = trace(model, "빨간 하트", **options)
    after = model.generate("빨간 하트", **options)[0]
    assert torch.equal(before.latent, found.picture.latent)
    assert torch.equal(before.latent, after.latent)
    assert before.image.tobytes() == found.picture.image.tobytes()
    assert before.recipe == found.picture.recipe
    assert [word.text for word in found.words] == ["빨간", "하트"]
    assert found.maps.shape == (2, 8, 8)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance": 1},
        {"negative": "a dog " * 40},  # in two chunks
        {"sampler": "heun"},
        {"sampler": "euler-ancestral"},
        {"sampler": "dpm-adaptive"},
        {"guides": "pag"},
        {"guides": "then:prompt=a dog,after=0.5"},
        {"deep_cache": 2},
        {"token_merging": 0.5},
    ],
    ids=str,
)
def test_the_picture_is_that_of_generate(sd1: LatentDiffusion, options: dict[str, Any]):
    expected = sd1.generate(PROMPT, **SHORT, **options)[0]
    found = trace(sd1, PROMPT, **SHORT, **options)
    assert torch.equal(found.picture.latent, expected.latent)
    assert found.picture.image.tobytes() == expected.image.tobytes()
    assert all(step.maps.shape == (3, 16, 16) for step in found.steps)
    asked = [True] * len(found.steps)
    if "then" in str(options):  # at the last step another prompt
        asked[-1] = False
    assert [bool(step.maps.any()) for step in found.steps] == asked
    guided = ["guidance" not in options and each for each in asked]
    assert [step.guidance is not None for step in found.steps] == guided


@pytest.mark.parametrize("variant", ["sd2-v", "sdxl"])
def test_other_models(variant: str):
    model = build(variant)
    expected = model.generate(PROMPT, **SHORT)[0]
    found = trace(model, PROMPT, **SHORT)
    assert torch.equal(found.picture.latent, expected.latent)
    assert all(step.maps.amin() > 0 for step in found.steps)


@pytest.mark.parametrize(
    ("variant", "process"), [("sd1", None), ("sd2-v", None), ("sd1", "edm"), ("sd2-v", "flow")]
)
def test_steps_have_what_the_denoiser_says(variant: str, process: str | None):
    """σ, x, and the estimates with and without the prompt, by the model itself."""
    model = build(variant)
    if process:
        model = replace(model, process=PROCESSES[process]())
    found = trace(model, PROMPT, guidance=3, sampler="euler", **SHORT)
    steps = [*model.steps(PROMPT, guidance=3, sampler="euler", **SHORT)]
    assert len(found.steps) == len(steps) == 3
    positive, negative = model.condition([PROMPT]), model.condition([None])
    for place, (own, step) in enumerate(zip(found.steps, steps, strict=True)):
        assert torch.equal(own.x0, step.x0[0])
        if place:
            assert own.sigma == pytest.approx(steps[place - 1].sigma, rel=1e-4)
            assert torch.allclose(own.x, steps[place - 1].x[0], rtol=1e-4, atol=1e-4)
        level = torch.tensor([own.sigma])
        with torch.inference_mode():
            high, low = (
                model.denoise(own.x[None], level, cond)[0] for cond in (positive, negative)
            )
        rounding = 1e-6 * high.norm()
        assert (own.guidance - (high - low)).norm() < 1e-3 * own.guidance.norm() + rounding
        assert torch.allclose(low + 3 * own.guidance, own.x0, atol=1e-3 * float(own.x0.abs().max()))


def test_the_negative_prompt_does_not_change_the_maps_of_one_call(sd1: LatentDiffusion):
    """Not even a long one, for which the prompt's tokens are repeated."""
    once = trace(sd1, PROMPT, **SHORT).steps[0].maps
    other = trace(sd1, PROMPT, negative="a dog " * 40, **SHORT).steps[0].maps
    assert torch.allclose(once, other, rtol=1e-5)


def test_an_error_inside_leaves_nothing(sd1: LatentDiffusion):
    before = sd1.generate(PROMPT, **SHORT)[0]

    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(sd1, PROMPT, observe=fail, **SHORT)
    assert torch.equal(sd1.generate(PROMPT, **SHORT)[0].latent, before.latent)
    hooks = [module._forward_pre_hooks or module._forward_hooks for module in sd1.unet.modules()]
    assert not any(hooks)


def test_adapters_are_traced_too(sd1: LatentDiffusion):
    """The network of a request is recorded, not the model's own."""
    traced: list[object] = []
    other = sd1.with_network(lambda network: traced.append(network) or network)
    recipe = sd1.recipes(PROMPT, token_merging=0.5, **SHORT)[0]
    merging = with_adapters(other, recipe)
    assert traced[0] is sd1.unet
    assert traced[1] is merging.unet is not sd1.unet


def test_what_cannot_be_traced(sd1: LatentDiffusion, monkeypatch: pytest.MonkeyPatch):
    for prompt, options, said in (
        (PROMPT, {"count": 2}, "of one picture, not 2"),
        (PROMPT, {"upscale": 2}, "not possible with upscale"),
        ("...", {}, "no words"),
        (PROMPT, {"sampler": "eulr"}, "did you mean 'euler'"),
    ):
        with pytest.raises(UndustError, match=said):
            trace(sd1, prompt, **SHORT, **options)
    monkeypatch.setattr(sd1, "engine", "openvino")
    with pytest.raises(UndustError, match="one of torch, cpu, int8"):
        trace(sd1, PROMPT, **SHORT)


def test_progress(sd1: LatentDiffusion, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    trace(sd1, PROMPT, observe=lambda *numbers: seen.append(numbers), **SHORT)
    assert seen == [(1, 3), (2, 3), (3, 3)]
