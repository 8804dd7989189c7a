"""Pictures with deep features that are reused: which calls are whole, and what is kept apart."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import undust
from undust.diffusion.guidance import ClassifierFree, GuidedRun
from undust.engines import conversion, probe
from undust.errors import UndustError
from undust.generation.guided import guided
from undust.networks.config import DiTConfig
from undust.networks.controlnet import ControlNet, from_unet
from undust.networks.dit import DiT
from undust.networks.unet import AnyUNet
from undust.pipeline import LatentDiffusion

STEPS = 6


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LatentDiffusion:
    return undust.load(tiny_model)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The calls of U-Nets: whole or cached, and of how many entries."""
    found: list[tuple[str, int]] = []
    forward = AnyUNet.forward

    def counted(self: AnyUNet, x: Tensor, *args: Any, deep: Any = None, **options: Any) -> Tensor:
        cached = deep is not None and deep.features is not None
        found.append(("cached" if cached else "whole", len(x)))
        return forward(self, x, *args, deep=deep, **options)

    monkeypatch.setattr(AnyUNet, "forward", counted)
    return found


def latents(model: LatentDiffusion, prompts: str | list[str] = "a cat", **options: Any) -> Tensor:
    pictures = model.generate(prompts, **{"seed": 1, "steps": STEPS, "sampler": "euler", **options})
    return torch.stack([each.latent for each in pictures])


def whole(calls: list[tuple[str, int]]) -> str:
    """W or c for each call, in order; and the list is emptied."""
    found = "".join("W" if kind == "whole" else "c" for kind, _ in calls)
    calls.clear()
    return found


def test_every_step_is_none_at_all(model: LatentDiffusion, calls):
    assert torch.equal(latents(model, deep_cache=1), latents(model))
    assert whole(calls) == "W" * 2 * STEPS


@pytest.mark.parametrize(
    ("interval", "sampler", "expected"),
    [
        (2, "euler", "WcWcWc"),
        (3, "euler", "WccWcc"),
        (100, "euler", "Wccccc"),
        # two calls a step, the second at the next step's level
        (2, "heun", "Wcc" + "Wccc" + "Wccc"),
        (3, "heun", "Wcccc" + "Wccccc"),
    ],
)
def test_steps_of_the_schedule_are_counted(
    model: LatentDiffusion, calls, interval: int, sampler: str, expected: str
):
    latents(model, deep_cache=interval, sampler=sampler)
    assert whole(calls) == expected[: 2 * STEPS - 1]
    assert len(expected) >= (STEPS if sampler == "euler" else 2 * STEPS - 1)


def test_features_are_those_of_the_last_whole_call(model: LatentDiffusion):
    """Where nothing deep changes, caching them changes nothing."""
    assert not torch.allclose(latents(model, deep_cache=2), latents(model), rtol=1e-4)
    same = latents(model, steps=2, deep_cache=2, schedule="1.0,0.999999,0")
    assert torch.allclose(same, latents(model, steps=2, schedule="1.0,0.999999,0"), atol=1e-4)


GUIDES: list[dict[str, Any]] = [
    {},
    {"guidance": 1.0},
    {"negative": "a dog"},
    {"guides": ["interval:low=0.3,high=5"]},
    {"guides": ["pag", "interval:high=2"]},
    {"guides": ["then:prompt=a dog,after=0.5"]},
    {"guides": ["apg"], "sampler": "heun"},
    {"sampler": "dpmpp-2m-sde"},
]


@pytest.mark.parametrize("options", GUIDES, ids=str)
def test_a_picture_does_not_depend_on_its_batch(model: LatentDiffusion, options: dict[str, Any]):
    prompts = ["a cat", "a dog", "고양이"]
    together = latents(model, prompts, deep_cache=3, **options)
    for prompt, expected in zip(prompts, together, strict=True):
        alone = latents(model, prompt, deep_cache=3, **options)[0]
        assert (alone - expected).norm() < 1e-5 * expected.norm()


def test_a_branch_that_comes_later_is_computed_whole(model: LatentDiffusion, calls):
    """Guidance begins within three steps: its branch is called apart, the other one is cached."""
    levels = "8,7,6,5,4,3,0"
    latents(model, schedule=levels, deep_cache=3, guides=["interval:low=0,high=7"])
    assert calls == [
        *[("whole", 1), ("cached", 1), ("whole", 1), ("cached", 2)],
        *[("whole", 2), ("cached", 2), ("cached", 2)],
    ]


@torch.inference_mode()
def test_branches_have_features_of_their_own(model: LatentDiffusion):
    """Guidance is that of two branches which are evaluated apart."""
    levels = torch.tensor([8.0, 6.0, 4.0, 0.0])
    asked = model.recipes("a cat", seed=1, negative="a dog", guidance=3.0, deep_cache=2)
    run = guided(model, asked, levels)
    together = run.denoise
    assert isinstance(together, ClassifierFree)
    positive, negative = GuidedRun(together.positive), GuidedRun(together.negative)
    generator = torch.Generator().manual_seed(0)
    for level in levels[:3]:
        x, sigma = torch.randn(1, 4, 8, 8, generator=generator) * level, level[None]
        p, n = positive(x, sigma), negative(x, sigma)
        torch.testing.assert_close(run(x, sigma), n + 3 * (p - n), rtol=1e-4, atol=1e-4)
        fresh = GuidedRun(together.positive)(x, sigma)
        assert torch.equal(p, fresh) is (float(level) != 6)


def test_nothing_is_left_for_the_next_request(model: LatentDiffusion, calls):
    one, other = {"deep_cache": 4}, {"deep_cache": 4, "prompts": "a dog", "seed": 2}
    expected = [latents(model, **each) for each in (one, other)]
    assert whole(calls) == "WcccWc" * 2
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda each: latents(model, **each), [one, other] * 3))
    assert all(torch.equal(each, expected[k % 2]) for k, each in enumerate(found))
    model.generate("a cat", seed=1, steps=1, deep_cache=4)  # stops within an interval
    assert torch.equal(latents(model, **one), expected[0])


def test_interrupted_steps_do_not_disturb_others(model: LatentDiffusion):
    """Two runs in turn, step by step."""

    def run(prompt: str) -> Iterator[Tensor]:
        steps = model.steps(prompt, seed=1, steps=STEPS, deep_cache=3)
        return (step.x for step in steps)

    together = list(zip(run("a cat"), run("a dog"), strict=True))
    for k, prompt in enumerate(("a cat", "a dog")):
        alone = list(run(prompt))
        assert all(torch.equal(each[k], x) for each, x in zip(together, alone, strict=True))


def test_the_recipe_has_it(model: LatentDiffusion):
    (picture,) = model.generate("a cat", seed=1, steps=STEPS, deep_cache=3)
    assert picture.recipe.deep_cache == 3
    assert torch.equal(model.rerun(picture.recipe).latent, picture.latent)
    assert "deep_cache" not in model.recipes("a cat", seed=1)[0].model_dump()


def test_an_upscaled_picture(model: LatentDiffusion, calls):
    latents(model, deep_cache=2, upscale="2@0.5")
    assert whole(calls) == "WcWcWc" + "WcW"


def test_a_transformer_is_refused(tiny_model: Path):
    model = undust.load(tiny_model)
    model.unet = DiT(DiTConfig(num_attention_heads=2, attention_head_dim=8, num_layers=1))
    with pytest.raises(UndustError, match=r"^deep_cache: tiny has no U-Net, .* but a DiT$"):
        model.recipes("a cat", deep_cache=2)
    assert model.recipes("a cat", deep_cache=1)


def test_a_controlnet_is_called_with_the_deep_layers(
    model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """At cached calls its last residuals stay; where it begins or ends, the call is a whole one."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = from_unet(model.unet, 4)  # type: ignore[arg-type]
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    monkeypatch.setattr(LatentDiffusion, "control", lambda *_: network)
    monkeypatch.setattr("undust.generation.options.resolved_weights", lambda given: given)
    seen: list[int] = []
    forward = ControlNet.forward
    monkeypatch.setattr(
        ControlNet, "forward", lambda self, x, *rest: seen.append(len(x)) or forward(self, x, *rest)
    )
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    asked = {"controls": f"net={tmp_path / 'a.png'}"}
    controlled = latents(model, deep_cache=3, **asked)
    assert seen == [2, 2]
    assert not torch.allclose(controlled, latents(model, deep_cache=3), atol=1e-3)
    seen.clear()
    latents(model, deep_cache=100, controls=f"net={tmp_path / 'a.png'}:0.5-1")
    assert seen == [2]


@pytest.mark.parametrize(("engine", "error"), [("cpu", 1e-3), ("int8", 0.2), ("openvino", 1e-3)])
def test_engines(calls, engine: str, error: float):
    """They compute the same layers; OpenVINO's place is taken by `cpu`."""
    if engine == "int8" and not probe.int8_is_faster():
        pytest.skip("8 bits are not faster here")
    if engine == "openvino" and conversion.missing():
        pytest.skip("OpenVINO is not installed")
    plain = undust.load("emoji")
    expected = latents(plain, deep_cache=3)
    assert whole(calls) == "WccWcc"
    found = latents(plain.with_engine(engine), deep_cache=3)
    assert whole(calls) == "WccWcc"
    assert (found - expected).norm() < error * expected.norm()
