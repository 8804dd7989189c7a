"""Trained models under conditions open in diffusers' pipelines and give the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

import undust
from undust.diffusion.noise import BESIDE, normal
from undust.formats.folder import read_json
from undust.training import kinds
from undust.training.diffusion import DiffusionConfig
from undust.training.run import train

OURS: dict[str, Any] = {"steps": 3, "sampler": "ddim", "schedule": "leading"}
THEIRS: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np"}
ROUNDING = 0.75  # of 255
Recipe = Callable[..., DiffusionConfig]


def opened(folder: Path) -> Any:
    """The pipeline that model_index.json names."""
    kind = getattr(diffusers, read_json(folder / "model_index.json")["_class_name"])
    found = kind.from_pretrained(folder)
    found.set_progress_bar_config(disable=True)
    return found


def noise() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def with_table(recipe: DiffusionConfig, **tables: Any) -> DiffusionConfig:
    config = kinds.parse({**recipe.model_dump(mode="json", exclude_unset=True), **tables}, "here")
    assert isinstance(config, DiffusionConfig)
    return config


def test_latents_without_a_condition(recipe: Recipe, tmp_path: Path) -> None:
    assert train(recipe(first=None), tmp_path)
    pipe, model = opened(tmp_path / "model"), undust.load(tmp_path / "model")
    assert isinstance(pipe, diffusers.LDMPipeline)
    theirs = pipe(generator=torch.Generator().manual_seed(0), **THEIRS).images[0]
    [ours] = model.generate([], noise=noise(), **OURS)
    assert np.abs(np.asarray(ours.image, float) - 255 * theirs).max() < ROUNDING
    assert np.ptp(np.asarray(ours.image)) > 10


def test_inpainting(diffusion_recipe: Recipe, data: Path, tmp_path: Path) -> None:
    recipe = diffusion_recipe("run.steps=2")
    assert train(with_table(recipe, inpainting={}), tmp_path)
    pipe, model = opened(tmp_path / "model"), undust.load(tmp_path / "model")
    assert isinstance(pipe, diffusers.StableDiffusionInpaintPipeline)
    image = Image.open(data / "03.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:] = 255
    theirs = pipe(
        "녹",
        image=image,
        mask_image=Image.fromarray(mask),
        latents=noise(),
        height=16,
        width=16,
        strength=1.0,
        guidance_scale=4.0,
        **THEIRS,
    ).images[0]
    [ours] = model.generate(
        "녹", init=image, mask=Image.fromarray(mask), noise=noise(), strength=1, **OURS
    )
    inside = slice(4, 12), slice(4, None)
    # diffusers draws the masked picture's latents from their posterior; here their mean is taken.
    apart = np.abs(np.asarray(ours.image, float)[inside] - 255 * theirs[inside])
    assert apart.max() < 10 * ROUNDING


def test_super_resolution(diffusion_recipe: Recipe, data: Path, tmp_path: Path) -> None:
    recipe = diffusion_recipe("run.steps=2")
    assert train(with_table(recipe, low_resolution={}), tmp_path)
    pipe, model = opened(tmp_path / "model"), undust.load(tmp_path / "model")
    assert isinstance(pipe, diffusers.StableDiffusionUpscalePipeline)
    small = Image.open(data / "03.png").resize((8, 8))
    drawn = normal(5, (BESIDE, 0, 0), (3, 8, 8))[None]
    plain = pipe.low_res_scheduler.add_noise
    pipe.low_res_scheduler.add_noise = lambda image, _, level: plain(image, drawn.to(image), level)
    theirs = pipe(
        "녹", image=small, latents=noise(), noise_level=20, guidance_scale=4.0, **THEIRS
    ).images[0]
    [ours] = model.generate("녹", init=small, seed=5, noise=noise(), **OURS)
    assert np.abs(np.asarray(ours.image, float) - 255 * theirs).max() < ROUNDING


def test_classes_by_a_transformer(recipe: Recipe, first_stage: Path, tmp_path: Path) -> None:
    given = recipe("[labels]", first=None).model_dump(mode="json", exclude_unset=True)
    del given["unet2d"]
    given["dit"] = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "norm_num_groups": 4,
    }
    assert train(kinds.parse(given, "here"), tmp_path / "run")
    pipe, model = opened(tmp_path / "run/model"), undust.load(tmp_path / "run/model")
    assert isinstance(pipe, diffusers.DiTPipeline)
    assert pipe.get_label_ids(["green"]) == [1] == [model.class_number("green")]
    seed = torch.Generator().manual_seed(0)
    theirs = pipe([1], guidance_scale=1.0, generator=seed, **THEIRS).images[0]
    [ours] = model.generate([], label="green", noise=noise(), guidance=1, **OURS)
    assert np.abs(np.asarray(ours.image, float) - 255 * theirs).max() < ROUNDING


def test_finished_text_encoders(
    diffusion_recipe: Recipe, recipe: Recipe, pictures: Path, tmp_path: Path
) -> None:
    """Those of another model: their weights stay, and the new model has them and their words."""
    assert train(diffusion_recipe("run.steps=1"), tmp_path / "old")
    given = recipe(first=None).model_dump(mode="json", exclude_unset=True)
    del given["unet2d"]
    given |= {"unet": diffusion_recipe().model_dump(mode="json", exclude_unset=True)["unet"]}
    given |= {"text_encoder_from": str(tmp_path / "old/model")}
    assert train(kinds.parse(given, "here"), tmp_path / "new")
    old, new = (undust.load(tmp_path / name / "model") for name in ("old", "new"))
    for name, tensor in old.texts[0].encoder.state_dict().items():
        assert torch.equal(new.texts[0].encoder.state_dict()[name], tensor)
    assert new.texts[0].tokenizer.vocabulary == old.texts[0].tokenizer.vocabulary
    pipe = opened(tmp_path / "new/model")
    theirs = pipe("녹", latents=noise(), guidance_scale=4.0, **THEIRS).images[0]
    [ours] = new.generate("녹", noise=noise(), guidance=4, **OURS)
    assert np.abs(np.asarray(ours.image, float) - 255 * theirs).max() < ROUNDING
