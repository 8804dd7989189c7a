"""undust.load_video: films from the library."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import undust
from elsewhere import Device
from films import tiny_pipeline, write_film_model
from undust.errors import UndustError
from undust.generation.film_options import first_frame_recipe
from undust.networks import stored as stored_layers
from undust.recipe.film import FilmRecipe

QUICK: dict[str, Any] = {"frames": 3, "steps": 2, "size": (32, 24), "seed": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film_model(tmp_path_factory.mktemp("films") / "tiny-svd")


@pytest.fixture(scope="module")
def model(folder: Path) -> undust.VideoDiffusion:
    return undust.load_video(folder)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.radial_gradient("L").convert("RGB")


def latents(model: undust.VideoDiffusion, photo: Image.Image, **options: Any) -> Tensor:
    return model.animate(photo, **{**QUICK, **options}).latents


def test_a_film_is_a_function_of_its_recipe(model: undust.VideoDiffusion, photo: Image.Image):
    film = model.animate(photo, **QUICK)
    assert [frame.size for frame in film.frames] == [(32, 24)] * 3
    assert film.latents.shape == (3, 4, 12, 16)
    again = model.rerun(film.recipe)
    assert torch.equal(film.latents, again.latents)
    assert [a.tobytes() for a in film.frames] == [b.tobytes() for b in again.frames]
    assert FilmRecipe.read(film.recipe.model_dump()) == film.recipe


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"fps": 12},
        {"motion": 10},
        {"guidance": 2.0},
        {"noise_augmentation": 0.5},
        {"steps": 3},
        {"sampler": "heun"},
    ],
)
def test_every_option_matters(
    change: dict[str, Any], model: undust.VideoDiffusion, photo: Image.Image
):
    assert not torch.equal(latents(model, photo), latents(model, photo, **change))


@pytest.mark.parametrize(("guidance", "calls"), [(1.0, 1), (2.0, 2), ((1.0, 3.0), 2)])
def test_each_condition_is_a_call_of_its_own(
    guidance: float | tuple[float, float],
    calls: int,
    model: undust.VideoDiffusion,
    photo: Image.Image,
):
    """So that memory is that of one film; and guidance 1 needs one condition."""
    sizes: list[int] = []
    hook = model.unet.conv_in.register_forward_pre_hook(
        lambda _, given: sizes.append(len(given[0]))
    )
    latents(model, photo, guidance=guidance)
    hook.remove()
    assert sizes == [3] * (2 * calls)


def test_defaults_are_the_models(model: undust.VideoDiffusion, photo: Image.Image):
    recipe = model.recipe(photo)
    assert (recipe.frames, recipe.width, recipe.height) == (4, 16, 16)
    assert (recipe.fps, recipe.motion, recipe.guidance) == (7, 127, (1.0, 3.0))
    assert recipe.decoded_frames == 4
    assert model.recipe(photo).seed != recipe.seed


def test_frames_decoded_apart_do_not_see_one_another(
    model: undust.VideoDiffusion, photo: Image.Image
):
    together = model.animate(photo, **QUICK)
    apart = model.animate(photo, **QUICK, decoded_frames=1)
    assert torch.equal(together.latents, apart.latents)
    alone = model.decode(together.latents[1:2], 1)
    assert torch.equal(model.decode(together.latents, 1)[1:2], alone)
    assert not torch.equal(model.decode(together.latents, 3)[1:2], alone)


def test_16_bits_in_memory_give_the_same_film(
    photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stored_layers, "LARGE", 2**10)  # numbers of a weight that stays
    tiny_pipeline().to(torch.float16).save_pretrained(tmp_path / "half")
    wide, stored = (
        undust.load_video(tmp_path / "half", engine="torch", low_memory=low)
        for low in (False, True)
    )
    assert (wide.precision, stored.precision) == ("float32", "float32")
    assert torch.equal(latents(wide, photo), latents(stored, photo))
    assert stored.recipe(photo, **QUICK).low_memory
    assert {each.dtype for each in wide.unet.parameters()} == {torch.float32}
    assert {each.dtype for each in stored.unet.parameters()} == {torch.float16, torch.float32}
    films = [layer for layer in stored.unet.modules() if isinstance(layer, torch.nn.Conv3d)]
    assert {layer.weight.dtype for layer in films} == {torch.float16}


def test_a_film_keeps_the_recipe_of_a_generated_picture(
    model: undust.VideoDiffusion, photo: Image.Image, tiny_model: Path
):
    pictures = undust.load(tiny_model, engine="torch")
    [cat] = pictures.generate("a cat", seed=3, steps=1)
    film = model.animate(cat, **QUICK)
    assert film.recipe.picture_recipe == cat.recipe
    assert torch.equal(film.latents, model.animate(cat.image, **QUICK).latents)
    assert "picture_recipe" not in model.recipe(photo).model_dump()
    read = FilmRecipe.read(film.recipe.model_dump(mode="json"))
    assert read == film.recipe
    with pytest.raises(UndustError, match="was generated by the model 'tiny' and is in no file"):
        model.rerun(read)
    assert read.picture_recipe is not None
    again = model.rerun(read, picture=pictures.rerun(read.picture_recipe))
    assert torch.equal(again.latents, film.latents)
    with pytest.warns(RuntimeWarning, match="is not to the byte what it was"):
        model.rerun(read, picture=photo)
    with pytest.raises(UndustError, match="steps"):
        FilmRecipe.read({**read.model_dump(), "picture_recipe": {"prompt": "", "steps": 0}})


def test_the_first_frame_has_a_size_that_its_model_can_make(tiny_model: Path):
    pictures = undust.load(tiny_model, engine="torch")
    for size, made in (
        ((36, 24), (36, 24)),
        ((34, 24), (32, 32)),  # not divisible by 4
        ((80, 80), (32, 32)),  # more than 6 times the pixels
    ):
        recipe = first_frame_recipe(pictures, "a cat", 2**63 + 5, size)
        assert (recipe.width, recipe.height, recipe.seed) == (*made, 5)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_film(
    dtype: str, folder: Path, model: undust.VideoDiffusion, photo: Image.Image
):
    half = undust.load_video(folder, dtype=dtype, engine="torch")
    film = half.animate(photo, **QUICK)
    assert film.recipe.precision == half.precision != "float32"
    wide = latents(model, photo)
    assert 0 < (film.latents - wide).norm() < 0.1 * wide.norm()


def test_given_noise_takes_the_place_of_the_seeds(model: undust.VideoDiffusion, photo: Image.Image):
    noise = torch.randn(3, 4, 12, 16)
    first, second = (
        model.animate(photo, **QUICK, noise=each).latents for each in (noise, noise + 1)
    )
    assert not torch.equal(first, second)
    with pytest.raises(UndustError, match=r"noise: its shape is \[4, 12, 16\]"):
        model.animate(photo, **QUICK, noise=noise[0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"frames": 1}, "frames: has to be greater than or equal to 2, not 1"),
        ({"frames": "many"}, "frames: has to be a valid integer"),
        ({"guidance": (1.0, float("nan"))}, "guidance"),
        ({"noise_augmentation": -1}, "noise_augmentation"),
        ({"size": (33, 24)}, "size: 33x24 is not divisible by 2"),
        ({"size": (34, 24)}, "size: 34x24 is not divisible by 4"),
        ({"size": (8192, 8192)}, "too many pixels"),
        ({"magic": 1}, "magic: is not known"),
        ({"schedule": "magic"}, "magic"),
    ],
)
def test_wrong_values_are_named(
    change: dict[str, Any], told: str, model: undust.VideoDiffusion, photo: Image.Image
):
    with pytest.raises(UndustError, match=told):
        model.recipe(photo, **{**QUICK, **change})


def test_another_models_recipe_is_refused(model: undust.VideoDiffusion, photo: Image.Image):
    recipe = model.recipe(photo, **QUICK).model_copy(update={"model_hash": "0123456789"})
    with pytest.raises(UndustError, match="was made with the model 'tiny-svd'"):
        model.rerun(recipe)


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder", "scheduler"])
def test_a_part_that_is_missing_is_named(part: str, folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / part)
    with pytest.raises(UndustError, match=part):
        undust.load_video(tmp_path / "model")


def test_on_a_gpu_it_is_the_same_film(
    folder: Path, model: undust.VideoDiffusion, photo: Image.Image
):
    """On a simulated one, with kernels in another order, which rounds differently."""
    with Device():
        there = undust.load_video(folder, device="cuda:0")
        found = latents(there, photo)
    expected = latents(model, photo)
    assert there.engine == "gpu"
    assert (found - expected).norm() < 1e-4 * expected.norm()
