"""Pictures with merged tokens: their recipes, and requests with other ratios beside them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import undust
from undust.adapters.token_merging import merges
from undust.engines import conversion, probe
from undust.errors import UndustError
from undust.latent.denoiser import PlacedNetwork
from undust.networks.config import DiTConfig
from undust.networks.dit import DiT
from undust.pipeline import LatentDiffusion


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LatentDiffusion:
    return undust.load(tiny_model)


def latents(model: LatentDiffusion, prompts: str | list[str] = "a cat", **options: Any) -> Tensor:
    pictures = model.generate(prompts, **{"seed": 1, "steps": 3, **options})
    return torch.stack([each.latent for each in pictures])


def test_none_is_the_model_itself(model: LatentDiffusion):
    assert torch.equal(latents(model, token_merging=0.0), latents(model))
    assert not torch.allclose(latents(model, token_merging=0.5), latents(model), atol=1e-4)
    assert "token_merging" not in model.recipes("a cat", seed=1)[0].model_dump()


def test_the_recipe_has_it(model: LatentDiffusion):
    (picture,) = model.generate("a cat", seed=1, steps=3, token_merging=0.5, deep_cache=2)
    assert (picture.recipe.token_merging, picture.recipe.deep_cache) == (0.5, 2)
    assert torch.equal(model.rerun(picture.recipe).latent, picture.latent)


def test_a_picture_does_not_depend_on_its_batch(model: LatentDiffusion):
    prompts = ["a cat", "a dog", "고양이"]
    together = latents(model, prompts, token_merging=0.5, guides="pag")
    for prompt, expected in zip(prompts, together, strict=True):
        alone = latents(model, prompt, token_merging=0.5, guides="pag")[0]
        assert (alone - expected).norm() < 1e-4 * expected.norm()


def test_requests_with_other_ratios_do_not_disturb_each_other(model: LatentDiffusion):
    ratios = [0.0, 0.25, 0.75]
    expected = [latents(model, token_merging=ratio) for ratio in ratios]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda k: latents(model, token_merging=ratios[k % 3]), range(9)))
    assert all(torch.equal(each, expected[k % 3]) for k, each in enumerate(found))


@pytest.mark.parametrize(("engine", "error"), [("cpu", 1e-2), ("int8", 0.5), ("openvino", 1e-2)])
def test_engines(engine: str, error: float):
    """They prepare the network that merges; OpenVINO's place is taken by `cpu`.

    Rounding to 8 bits changes which tokens are the most alike.
    """
    if engine == "int8" and not probe.int8_is_faster():
        pytest.skip("8 bits are not faster here")
    if engine == "openvino" and conversion.missing():
        pytest.skip("OpenVINO is not installed")
    plain = undust.load("emoji")
    expected, model = latents(plain, token_merging=0.5), plain.with_engine(engine)
    found = latents(model, token_merging=0.5)
    placed = model.with_adapters(token_merging=0.5).denoise.network
    assert isinstance(placed, PlacedNetwork) and merges(placed.network)
    assert (found - expected).norm() < error * expected.norm()


def test_a_transformer_is_refused(tiny_model: Path):
    model = undust.load(tiny_model)
    model.unet = DiT(DiTConfig(num_attention_heads=2, attention_head_dim=8, num_layers=1))
    with pytest.raises(UndustError, match=r"^token_merging: it is for U-Nets, .* has a DiT$"):
        model.recipes("a cat", token_merging=0.5)


def test_ratios_that_are_none(model: LatentDiffusion):
    with pytest.raises(UndustError, match=r"^token_merging: .* 0\.75, not 0\.8$"):
        model.recipes("a cat", token_merging=0.8)
