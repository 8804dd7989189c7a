"""The model that comes with undust."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import undust
from undust.cli import main
from undust.formats.locate import BUILT_IN, built_in

LARGEST = 39_000_000  # bytes; the wheel has to stay below 40 million, and the code takes its part


@pytest.fixture(scope="module")
def emoji():
    return undust.load("emoji")


def test_it_is_there_with_its_card():
    assert "emoji" in built_in()
    card = (BUILT_IN / "emoji" / "README.md").read_text("utf-8")
    for said in ("Apache", "Noto", "PSNR", "top-5"):
        assert said in card


def test_it_fits_the_wheel():
    files = [path for path in (BUILT_IN / "emoji").rglob("*") if path.is_file()]
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) < LARGEST


def test_its_hash_stays(emoji):
    """Recipes of pictures that were made with it name it."""
    assert emoji.hash == "bda9ba017e"


def test_words_matter(emoji):
    """The same noise under two prompts: a red heart is redder than a blue one, and not blank."""
    red, blue = emoji.generate(["red heart", "blue heart"], seed=3, steps=10)
    colour = [np.asarray(picture.image, float).mean((0, 1)) for picture in (red, blue)]
    assert colour[0][0] - colour[0][2] > colour[1][0] - colour[1][2] + 20
    assert all(np.asarray(picture.image, float).std() > 20 for picture in (red, blue))


def test_diffusers_paints_the_same_picture_from_the_same_latent(emoji):
    """Its own pipeline on the very folder by the plain call, in both languages."""
    from diffusers import StableDiffusionPipeline

    theirs = StableDiffusionPipeline.from_pretrained(BUILT_IN / "emoji")
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(1, *emoji.latent_shape(*emoji.size), generator=torch.manual_seed(0))
    for prompt in ("a smiling cat", "빨간 하트"):
        expected = theirs(
            prompt, latents=noise, num_inference_steps=8, guidance_scale=4.0, output_type="np"
        ).images[0]
        (got,) = emoji.generate(
            prompt, noise=noise, steps=8, guidance=4.0, sampler="ddim", schedule="leading"
        )
        assert np.abs(expected * 255 - np.asarray(got.image, float)).max() <= 2


@pytest.mark.parametrize(("precision", "most"), [("fp16", 0.8), ("bf16", 2.5)])
def test_its_copy_in_half_precision_opens_in_diffusers(precision: str, most: float, tmp_path: Path):
    """By the plain call the same picture; within rounding in that precision."""
    from diffusers import StableDiffusionPipeline

    target = tmp_path / "copy"
    asked = ["convert", "emoji", str(target), "--to", "folder", "--dtype", precision]
    assert main(asked) == 0
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    for chosen, name in (({}, "fp32"), ({"torch_dtype": dtype}, precision)):
        theirs = StableDiffusionPipeline.from_pretrained(target, **chosen)
        theirs.set_progress_bar_config(disable=True)
        model = undust.load(target, dtype=name)
        noise = torch.randn(1, *model.latent_shape(*model.size), generator=torch.manual_seed(0))
        expected = theirs(
            "red heart", latents=noise.to(model.dtype), num_inference_steps=3, output_type="np"
        ).images[0]
        (got,) = model.generate(
            "red heart", noise=noise, steps=3, guidance=7.5, sampler="ddim", schedule="leading"
        )
        apart = np.abs(expected * 255 - np.asarray(got.image, float))
        assert apart.mean() <= most
        assert chosen or apart.max() < 0.75


def test_adaptive_samplers_paint_each_picture_alone(emoji):
    """A step that rounding accepts in a batch and rejects alone moved bytes by up to 4."""
    prompts = ["a smiling cat", "웃는 고양이"]
    together = emoji.generate(prompts, seed=1002, sampler="dpm-adaptive", steps=8, size=32)
    (alone,) = emoji.generate(prompts[1], seed=1002, sampler="dpm-adaptive", steps=8, size=32)
    assert [picture.recipe.batch for picture in together] == [1, 1]
    assert together[1].image.tobytes() == alone.image.tobytes()


def test_pictures_of_a_batch_are_those_alone_to_one_byte(emoji):
    """At the defaults, and where noise is drawn: on any processor."""
    prompts = ["a smiling cat", "red heart"]
    noisy = {"sampler": "euler-ancestral", "steps": 10}
    for options in ({}, noisy, {"upscale": "2@0.4", "steps": 4}):
        together = emoji.generate(prompts, seed=7, **options)
        exact = emoji.generate(prompts, seed=7, exact=True, **options)
        for one, other in zip(together, exact, strict=True):
            off = np.asarray(one.image).astype(int) - np.asarray(other.image)
            assert np.abs(off).max() <= 1
