"""Every variant and task: the latents that diffusers' pipelines come to from the same start."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import undust
from undust.diffusion.noise import BESIDE, PictureNoise, normal
from undust.formats.folder import read_json
from undust.formats.original.variants import VARIANTS
from undust.pipeline import LatentDiffusion
from variants import build

TOLERANCE = 1e-4
PROMPT, NEGATIVE = "a cat, oil painting", "blurry dog"
SIZE = 64
LIKE_DDIM = {"sampler": "ddim", "schedule": "leading"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    """The folder of a variant, written once."""
    root = tmp_path_factory.mktemp("variants")

    @cache
    def folder(variant: str) -> Path:
        build(variant).save(root / variant)
        return root / variant

    return folder


@pytest.fixture(scope="module")
def loaded(folders):
    """A variant as undust loads it, and as a pipeline of diffusers does."""

    @cache
    def both(variant: str, pipeline: str = "") -> tuple[LatentDiffusion, Any]:
        folder = folders(variant)
        kind = getattr(diffusers, pipeline or read_json(folder / "model_index.json")["_class_name"])
        spare = {} if "XL" in kind.__name__ else {"safety_checker": None}
        theirs = kind.from_pretrained(folder, **({} if "Upscale" in kind.__name__ else spare))
        theirs.set_progress_bar_config(disable=True)
        return undust.load(folder), theirs

    return both


def noise(model: LatentDiffusion, seed: int = 0) -> Tensor:
    return torch.randn(1, *model.latent_shape(SIZE, SIZE), generator=torch.manual_seed(seed))


def picture(size: int = SIZE, seed: int = 0) -> Image.Image:
    """Something with shapes in it, without alpha."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def apart(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert theirs.isfinite().all()
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("variant", ["sd1", "sd2", "sd2-v", "sdxl"])
@pytest.mark.parametrize("negative", [None, "", NEGATIVE])
def test_text_to_image(loaded, variant: str, negative: str | None):
    model, pipe = loaded(variant)
    asked = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    theirs = pipe(
        PROMPT, negative_prompt=negative, latents=noise(model), height=SIZE, width=SIZE, **asked
    ).images
    (ours,) = model.generate(
        PROMPT, negative=negative, noise=noise(model), size=SIZE, steps=4, guidance=3, **LIKE_DDIM
    )
    assert apart(ours.latent[None], theirs) < TOLERANCE


@pytest.mark.parametrize("steps", [4, 10])
def test_a_scheduler_that_does_not_end_at_zero(loaded, monkeypatch, steps: int):
    """set_alpha_to_one: false, as published: diffusers leaves the noise of its first time step."""
    model, pipe = loaded("sd1")
    config = {**pipe.scheduler.config, "set_alpha_to_one": False}
    monkeypatch.setattr(pipe, "scheduler", diffusers.DDIMScheduler.from_config(config))
    asked = {"num_inference_steps": steps, "guidance_scale": 3.0, "output_type": "latent"}
    theirs = pipe(PROMPT, latents=noise(model), height=SIZE, width=SIZE, **asked).images
    *_, before, last = model.steps(
        PROMPT, noise=noise(model), size=SIZE, steps=steps, guidance=3, **LIKE_DDIM
    )
    lowest = model.process.sigma_min
    left = last.x0 + lowest * (before.x - last.x0) / before.sigma
    assert apart(left / (1 + lowest**2) ** 0.5, theirs) < TOLERANCE
    assert 1e-3 < apart(last.x, theirs) < 2e-2


def test_no_negative_prompt_is_zeros_for_xl_and_the_empty_prompt_for_others(loaded):
    for variant, zero in (("sd1", False), ("sd2", False), ("sdxl", True), ("sdxl-refiner", False)):
        model, _ = loaded(variant)
        nothing, empty = model.condition([None]), model.condition([""])
        assert bool((nothing.text == 0).all()) is zero
        assert torch.equal(nothing.text, empty.text) is not zero


@torch.no_grad()
@pytest.mark.parametrize(("variant", "skip"), [("sd1", 1), ("sd1", 2), ("sd2", 1), ("sdxl", 1)])
def test_clip_skip(loaded, variant: str, skip: int):
    """Layers are skipped for both prompts, as in A1111; diffusers' pipelines skip the prompt's."""
    model, pipe = loaded(variant)
    states: list[Tensor] = []
    names = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
    for tokens, name in names[: len(model.texts)]:
        ids = getattr(pipe, tokens)(PROMPT, padding="max_length", return_tensors="pt").input_ids
        encoder = getattr(pipe, name)
        hidden = encoder(ids, output_hidden_states=True).hidden_states
        plain = variant != "sdxl"
        states.append(encoder.final_layer_norm(hidden[-1 - skip]) if plain else hidden[-2 - skip])
    ours = model.condition([PROMPT], clip_skip=skip).text
    assert apart(ours, torch.cat(states, -1)) < 1e-5
    assert apart(ours, model.condition([PROMPT]).text) > 1e-3


def test_what_xl_is_told_of_sizes(loaded):
    model, pipe = loaded("sdxl")
    theirs = pipe(
        PROMPT,
        latents=noise(model),
        height=SIZE,
        width=SIZE,
        num_inference_steps=3,
        guidance_scale=3.0,
        output_type="latent",
        original_size=(512, 768),
        crops_coords_top_left=(16, 8),
        target_size=(256, 128),
        negative_original_size=(512, 768),
        negative_crops_coords_top_left=(16, 8),
        negative_target_size=(256, 128),
    ).images
    (ours,) = model.generate(
        PROMPT,
        noise=noise(model),
        size=SIZE,
        steps=3,
        guidance=3,
        framing="original=768x512,crop=8x16,target=128x256",
        **LIKE_DDIM,
    )
    assert apart(ours.latent[None], theirs) < TOLERANCE


@pytest.mark.parametrize(
    ("variant", "pipeline"),
    [
        ("sd1", "StableDiffusionImg2ImgPipeline"),
        ("sd2-v", "StableDiffusionImg2ImgPipeline"),
        ("sdxl", "StableDiffusionXLImg2ImgPipeline"),
        ("sdxl-refiner", "StableDiffusionXLImg2ImgPipeline"),
    ],
)
def test_image_to_image(loaded, variant: str, pipeline: str):
    model, pipe = loaded(variant, pipeline)
    start = picture()
    latent = model.encode(as_tensor(start))
    # The pipeline draws its own noise; what it draws is known, as the generator is.
    drawn = torch.randn(latent.shape, generator=torch.manual_seed(7))
    theirs = pipe(
        PROMPT,
        image=latent,
        strength=0.6,
        num_inference_steps=5,
        guidance_scale=3.0,
        generator=torch.manual_seed(7),
        output_type="latent",
        **sizes(variant),
    ).images
    (ours,) = model.generate(
        PROMPT, init=start, strength=0.6, noise=drawn, steps=5, guidance=3, **LIKE_DDIM
    )
    assert apart(ours.latent[None], theirs) < TOLERANCE


def sizes(variant: str) -> dict[str, Any]:
    """What the pipelines for pictures take a latent's size for: the latent's own."""
    if not variant.startswith("sdxl"):
        return {}
    told = {"original_size": (SIZE, SIZE), "target_size": (SIZE, SIZE)}
    return {**told, **{f"negative_{name}": size for name, size in told.items()}}


def as_tensor(image: Image.Image) -> Tensor:
    return torch.tensor(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_image_to_image_is_painted_over_more_the_stronger_it_is(loaded):
    model, _ = loaded("sd1")
    latent = model.encode(as_tensor(picture()))[0]
    moved = [
        model.generate(PROMPT, init=picture(), strength=strength, seed=1, steps=10)[0].latent
        for strength in (0.1, 0.5, 0.9)
    ]
    apart_by = [float((found - latent).norm()) for found in moved]
    assert apart_by == sorted(apart_by)


@pytest.mark.parametrize(
    "variant", ["sd1", "sd1-inpainting", "sd2-inpainting", "sdxl-inpainting", "sdxl"]
)
def test_inpainting(loaded, variant: str):
    large = variant.startswith("sdxl")
    model, pipe = loaded(variant, f"StableDiffusion{'XL' * large}InpaintPipeline")
    # What an ordinary model knows is decided on here, place by place of the latent.
    start = picture()
    hole = mask(24, 16, 64, 48) if model.extra_channels == 0 else mask(18, 17, 46, 47)
    latent = model.encode(as_tensor(start))
    drawn = torch.randn(latent.shape, generator=torch.manual_seed(7))
    unknown = torch.tensor(np.array(hole))[None, None].float() / 255
    seen = model.encode(as_tensor(start) * (unknown < 0.5))
    theirs = pipe(
        PROMPT,
        image=latent,
        mask_image=unknown,
        masked_image_latents=seen,
        height=SIZE,
        width=SIZE,
        strength=0.8,
        num_inference_steps=5,
        guidance_scale=3.0,
        generator=torch.manual_seed(7),
        output_type="latent",
        **sizes(variant),
    ).images
    (ours,) = model.generate(
        PROMPT, init=start, mask=hole, strength=0.8, noise=drawn, steps=5, guidance=3, **LIKE_DDIM
    )
    assert apart(ours.latent[None], theirs) < TOLERANCE


def mask(left: int, top: int, right: int, bottom: int) -> Image.Image:
    levels = np.zeros((SIZE, SIZE), np.uint8)
    levels[top:bottom, left:right] = 255
    return Image.fromarray(levels)


@pytest.mark.parametrize("variant", ["sd1", "sd1-inpainting"])
@pytest.mark.parametrize("size", [64, 61])
def test_what_is_not_masked_comes_back_to_the_byte(loaded, variant: str, size: int):
    """Whatever the size: a canvas is as large as the latent needs it, and cut again."""
    model, _ = loaded(variant)
    start = picture(size)
    levels = np.zeros((size, size), np.uint8)
    levels[5:30, 7:41] = 255
    (ours,) = model.generate(PROMPT, init=start, mask=Image.fromarray(levels), steps=3, seed=1)
    before, after = np.array(start.convert("RGB")), np.array(ours.image)
    assert after.shape == before.shape
    assert (after == before)[levels == 0].all()
    assert (after != before)[levels == 255].mean() > 0.5


def test_a_picture_is_extended(loaded):
    model, _ = loaded("sd1")
    start = picture(40)
    (ours,) = model.generate(PROMPT, init=start, extend="7,0,17,4", steps=3, seed=1)
    after = np.array(ours.image)
    assert after.shape == (44, 64, 3)
    assert (after[:40, 7:47] == np.array(start)).all()


def test_the_refiner_takes_over_at_a_time_step(loaded, folders):
    base, theirs = loaded("sdxl")
    _, refiner = loaded("sdxl-refiner")
    asked = {"num_inference_steps": 6, "guidance_scale": 3.0, "output_type": "latent"}
    start = noise(base)
    half = theirs(PROMPT, latents=start, height=SIZE, width=SIZE, denoising_end=0.6, **asked).images
    whole = refiner(
        PROMPT, image=half, denoising_start=0.6, **asked, **sizes("sdxl-refiner")
    ).images
    (ours,) = base.generate(
        PROMPT,
        noise=start,
        size=SIZE,
        steps=6,
        guidance=3,
        refiner=f"{folders('sdxl-refiner')}@0.6",
        **LIKE_DDIM,
    )
    assert apart(ours.latent[None], whole) < TOLERANCE


def test_the_upscaler(loaded):
    model, pipe = loaded("x4-upscaler")
    small = picture(16)
    recipe = model.recipes(PROMPT, init=small, seed=5)[0]
    assert (recipe.width, recipe.height, recipe.noise_level) == (SIZE, SIZE, 20)
    # What undust draws for the small picture's dust is given to the pipeline as its generator's.
    dust = normal(5, (BESIDE, 0, 0), (3, 16, 16))[None]
    pipe.low_res_scheduler.add_noise, plain = (
        lambda image, _, level: plain(image, dust, level),
        pipe.low_res_scheduler.add_noise,
    )
    theirs = pipe(
        PROMPT,
        image=as_tensor(small),
        latents=noise(model),
        num_inference_steps=4,
        guidance_scale=3.0,
        noise_level=20,
        output_type="latent",
    ).images
    (ours,) = model.generate(
        PROMPT, init=small, noise=noise(model), seed=5, steps=4, guidance=3, **LIKE_DDIM
    )
    assert apart(ours.latent[None], theirs) < TOLERANCE
    assert ours.image.size == (SIZE, SIZE)


def test_a_second_pass_is_image_to_image_of_the_first(loaded):
    model, _ = loaded("sd1")
    (ours,) = model.generate(PROMPT, seed=1, steps=4, upscale="1.5@0.5")
    assert ours.image.size == (96, 96)
    (first,) = model.generate(PROMPT, seed=1, steps=4)
    larger = first.image.resize((96, 96), Image.Resampling.LANCZOS)
    start = PictureNoise([1], model.latent_shape(96, 96)).start(1)
    (second,) = model.generate(PROMPT, init=larger, strength=0.5, noise=start, seed=1, steps=4)
    assert torch.equal(ours.latent, second.latent)
    *_, last = model.steps(PROMPT, seed=1, steps=4, upscale="1.5@0.5")
    assert (last.index + 1, last.total) == (6, 6)


def test_the_variants_are_all_here():
    tried = {"sd1", "sd2", "sd2-v", "sdxl", "sdxl-refiner", "x4-upscaler"}
    assert VARIANTS.keys() == tried | {f"{name}-inpainting" for name in ("sd1", "sd2", "sdxl")}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_default_guidance_is_that_of_diffusers_pipelines(variant: str, tmp_path: Path):
    """A folder does not hold it."""
    model = build(variant)
    model.save(tmp_path / "folder")
    loaded = undust.load(tmp_path / "folder")
    kind = getattr(diffusers, read_json(tmp_path / "folder/model_index.json")["_class_name"])
    theirs = inspect.signature(kind.__call__).parameters["guidance_scale"].default
    expected = 5.0 if variant == "sdxl-inpainting" else theirs  # that of SDXL, not 7.5
    assert model.guidance == loaded.guidance == expected
    names = [words.name for words in loaded.texts]
    assert names == [text.folder for text in VARIANTS[variant].texts]
