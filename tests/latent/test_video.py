"""Models of films against diffusers' StableVideoDiffusionPipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    _resize_with_antialiasing,  # pyright: ignore[reportPrivateUsage]
)
from PIL import Image

from films import tiny_pipeline
from undust.diffusion.noise import BESIDE, normal
from undust.generation.animation import decode_film, sample_film
from undust.latent.video import VideoModel, shrunk
from undust.recipe.files import ImageRef
from undust.recipe.film import FilmRecipe


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = torch.randint(0, 256, (24, 32, 3), generator=torch.manual_seed(3))
    return Image.fromarray(pixels.byte().numpy()).resize((32, 24))


@pytest.mark.parametrize("size", [(224, 224), (576, 1024), (64, 48), (300, 100), (24, 500)])
def test_pictures_are_shrunk_as_in_training(size: tuple[int, int]):
    x = torch.rand(1, 3, *size) * 2 - 1
    torch.testing.assert_close(
        shrunk(x, 224), _resize_with_antialiasing(x, (224, 224)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("guidance", [(1.0, 3.0), (2.0, 2.0), (1.0, 1.0)])
def test_films_are_those_of_the_peer(
    guidance: tuple[float, float],
    picture: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    theirs = tiny_pipeline()
    theirs.save_pretrained(tmp_path / "model")
    model = VideoModel.load(tmp_path / "model", engine="torch")
    recipe = FilmRecipe(
        picture=ImageRef.of(picture),
        width=32,
        height=24,
        frames=4,
        fps=9,
        motion=100,
        guidance=guidance,
        noise_augmentation=0.1,
        steps=4,
        seed=5,
        decoded_frames=4,
    )
    noise = torch.randn(4, 4, 12, 16, generator=torch.manual_seed(1))
    beside = normal(5, (BESIDE, 0, 0), (1, 3, 24, 32))
    place = (
        "diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion.randn_tensor"
    )
    monkeypatch.setattr(place, lambda shape, **_: beside)
    options = {
        "height": 24,
        "width": 32,
        "num_frames": 4,
        "num_inference_steps": 4,
        "min_guidance_scale": guidance[0],
        "max_guidance_scale": guidance[1],
        "fps": 9,
        "motion_bucket_id": 100,
        "noise_aug_strength": 0.1,
    }
    latents = theirs(picture, latents=noise[None].clone(), output_type="latent", **options).frames
    *_, last = sample_film(model, recipe, noise)
    assert last.x.shape == (1, 4, 4, 12, 16)
    assert (last.x - latents).norm() < 1e-4 * latents.norm()
    film = decode_film(recipe, last)
    expected = theirs(picture, latents=noise[None].clone(), output_type="np", **options).frames[0]
    found = np.stack([np.asarray(frame) for frame in film.frames]) / 255
    assert np.abs(found - expected).max() < 1 / 255 + 1e-6
