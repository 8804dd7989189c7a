"""Films led by known views, from a depth map or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import undust
from films import write_film_model
from undust.conditioning.warp import latent_mask
from undust.errors import UndustError
from undust.formats.known_views import read_known_views, write_known_views
from undust.generation.known_views import known_views
from undust.pictures import from_image
from undust.recipe.film import FilmRecipe

QUICK: dict[str, Any] = {"frames": 4, "steps": 3, "size": (32, 24), "seed": 7}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> undust.VideoDiffusion:
    folder = write_film_model(tmp_path_factory.mktemp("films") / "tiny-svd")
    return undust.load_video(folder, engine="torch")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.radial_gradient("L").resize((32, 24)).convert("RGB")


@pytest.fixture
def depth(tmp_path: Path) -> Path:
    numbers = np.full((24, 32), 8.0)
    numbers[8:16, 10:20] = 5.0
    np.save(tmp_path / "depth.npy", numbers)
    return tmp_path / "depth.npy"


def of_depth(depth: Path, **more: Any) -> dict[str, Any]:
    return {"depth": {"path": depth}, "degrees": 15, **more}


def test_the_whole_weight_gives_the_known_latents(
    model: undust.VideoDiffusion, photo: Image.Image, depth: Path
):
    film = model.animate(photo, known=of_depth(depth, weight_clamp=1.0), **QUICK)
    start = from_image(photo, (32, 24))[None].float() / 127.5 - 1
    views = known_views(film.recipe, start)
    assert views.views.shape == (4, 3, 24, 32)
    assert torch.equal(views.views[0], start[0])
    assert bool(views.masks[0].all())
    assert not bool(views.masks[1:].all())
    latents = torch.cat([model.first_stage.encode(view[None]).mean for view in views.views])
    valid = latent_mask(views.masks, 2)[:, None].expand_as(latents)
    assert torch.equal(film.latents[valid], latents[valid])
    assert not torch.equal(film.latents[~valid], latents[~valid])


@pytest.mark.parametrize("form", ["quantile", "blend"])
def test_more_weight_is_nearer_to_the_known_views(
    form: str, model: undust.VideoDiffusion, photo: Image.Image, depth: Path
):
    free = model.animate(photo, **QUICK).latents
    films = [
        model.animate(photo, known=of_depth(depth, weight_clamp=clamp, form=form), **QUICK)
        for clamp in (0.0, 0.5, 1.0)
    ]
    start = from_image(photo, (32, 24))[None].float() / 127.5 - 1
    views = known_views(films[0].recipe, start)
    latents = torch.cat([model.first_stage.encode(view[None]).mean for view in views.views])
    valid = latent_mask(views.masks, 2)[:, None].expand_as(latents)
    away = [float((each - latents)[valid].norm()) for each in [free, *(f.latents for f in films)]]
    assert away == sorted(away, reverse=True)
    assert away[0] > away[-1]
    assert away[-1] == 0


def test_posterior_sampling_moves_towards_the_known_views(
    model: undust.VideoDiffusion, photo: Image.Image, depth: Path
):
    free = model.animate(photo, **QUICK)
    rates = (0.0, 0.1, 0.3)
    films = [
        model.animate(photo, known=of_depth(depth, form="posterior", learning_rate=rate), **QUICK)
        for rate in rates
    ]
    assert torch.equal(films[0].latents, free.latents)
    start = from_image(photo, (32, 24))[None].float() / 127.5 - 1
    views = known_views(films[0].recipe, start)
    latents = torch.cat([model.first_stage.encode(view[None]).mean for view in views.views])
    away = [float((film.latents - latents)[0].norm()) for film in films]
    assert away[0] > away[1] > away[2]
    usual = model.recipe(photo, known=of_depth(depth, form="posterior"), **QUICK)
    assert usual.known is not None
    assert usual.known.learning_rate == 0.02
    assert torch.equal(model.rerun(films[2].recipe).latents, films[2].latents)
    with pytest.raises(UndustError, match="sampler: the form posterior is a part of euler's steps"):
        model.recipe(photo, known=of_depth(depth, form="posterior"), sampler="heun", **QUICK)


def test_a_file_of_known_views_is_a_path_or_its_fields(
    model: undust.VideoDiffusion, photo: Image.Image, depth: Path
):
    expected = model.recipe(photo, known={"depth": {"path": depth}}, **QUICK).known
    for given in (depth, str(depth)):
        assert model.recipe(photo, known={"depth": given}, **QUICK).known == expected


@pytest.mark.parametrize("given", [5, "depth.npy", ["depth.npy"]])
def test_what_is_no_known_views_is_named(
    given: object, model: undust.VideoDiffusion, photo: Image.Image
):
    with pytest.raises(UndustError, match=r"known: .* is neither a KnownViews nor a dict of"):
        model.recipe(photo, known=given, **QUICK)


def test_a_folder_of_views_leads_too(
    model: undust.VideoDiffusion, photo: Image.Image, depth: Path, tmp_path: Path
):
    recipe = model.recipe(photo, known=of_depth(depth), **QUICK)
    start = from_image(photo, (32, 24))[None].float() / 127.5 - 1
    views = known_views(recipe, start)
    write_known_views(tmp_path / "views", views.views, views.masks)
    given = {"folder": {"path": tmp_path / "views"}, "weight_clamp": 1.0}
    film = model.animate(photo, known=given, **QUICK)
    read, masks = read_known_views(tmp_path / "views")
    latents = torch.cat([model.first_stage.encode(view[None]).mean for view in read])
    valid = latent_mask(masks, 2)[:, None].expand_as(latents)
    assert torch.equal(film.latents[valid], latents[valid])
    assert torch.equal(model.rerun(film.recipe).latents, film.latents)
    Image.new("L", (32, 24)).save(tmp_path / "views" / "mask-0001.png")
    with pytest.raises(UndustError, match="views is not any more what it was"):
        model.rerun(film.recipe)


def test_two_pictures_are_the_ends_of_the_film(
    model: undust.VideoDiffusion, photo: Image.Image, depth: Path
):
    end = Image.linear_gradient("L").resize((32, 24)).convert("RGB")
    given = of_depth(depth, last=end, last_depth={"path": depth})
    film = model.animate(photo, known=given, **QUICK)
    start, last = (from_image(each, (32, 24))[None].float() / 127.5 - 1 for each in (photo, end))
    views = known_views(film.recipe, start)
    assert torch.equal(views.views[-1], last[0])
    assert bool(views.masks[-1].all())
    assert views.distances is not None
    assert [bool(distance) for distance in views.distances] == [False, True, True, False]
    expected = [model.first_stage.encode(each).mean[0] for each in (start, last)]
    assert torch.equal(film.latents[0], expected[0])
    assert torch.equal(film.latents[-1], expected[1])
    one = known_views(model.recipe(photo, known=of_depth(depth), **QUICK), start)
    assert torch.equal(views.views[1], one.views[1])  # each from the nearer picture
    assert not torch.equal(views.views[2], one.views[2])
    assert torch.equal(model.rerun(film.recipe).latents, film.latents)
    assert FilmRecipe.read(film.recipe.model_dump(mode="json")) == film.recipe


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"last_depth": None}, r"the last picture needs a depth map too \(last_depth\)"),
        ({"last": None}, "last_depth is the depth map of a last picture"),
        ({"last": 3}, "picture: int is neither a file's path nor a PIL image"),
        ({"depth": None, "folder": {"path": "."}}, "goes with depth maps, not with a folder"),
        ({"last": Image.new("RGB", (40, 30))}, "it has 40x30 pixels, and the first picture 32x24"),
        ({"last_depth": {"path": "absent.npy"}}, "absent.npy"),
    ],
)
def test_what_is_wrong_with_two_pictures_is_named(
    change: dict[str, Any], told: str, model: undust.VideoDiffusion, photo: Image.Image, depth: Path
):
    given = of_depth(depth, last=photo, last_depth={"path": depth})
    with pytest.raises(UndustError, match=told):
        model.recipe(photo, known={**given, **change}, **QUICK)


def test_the_recipe_has_what_it_takes(
    model: undust.VideoDiffusion, photo: Image.Image, depth: Path
):
    recipe = model.recipe(photo, known=of_depth(depth), **QUICK)
    assert recipe.known is not None
    assert recipe.known.distance == 5.0  # the depth in the middle
    assert FilmRecipe.read(recipe.model_dump(mode="json")) == recipe
    first, again = (model.rerun(recipe).latents for _ in range(2))
    assert torch.equal(first, again)
    assert "known" not in model.recipe(photo, **QUICK).model_dump()
    np.save(depth, np.full((24, 32), 9.0))
    with pytest.raises(UndustError, match="is not any more what it was"):
        model.rerun(recipe)


def test_the_depth_map_follows_the_picture(
    model: undust.VideoDiffusion, photo: Image.Image, tmp_path: Path
):
    """A picture of twice the size, with its depth map, gives nearly the same views."""
    np.save(tmp_path / "one.npy", np.repeat([[5.0, 8.0]], 24, 0).repeat(16, 1))
    np.save(tmp_path / "two.npy", np.repeat([[5.0, 8.0]], 48, 0).repeat(32, 1))
    large = photo.resize((64, 48), Image.Resampling.BICUBIC)
    start = from_image(photo, (32, 24))[None].float() / 127.5 - 1
    masks = [
        known_views(
            model.recipe(picture, known=of_depth(tmp_path / f"{name}.npy"), **QUICK), start
        ).masks
        for picture, name in ((photo, "one"), (large, "two"))
    ]
    assert torch.equal(*masks)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"depth": None}, "either a depth map or a folder"),
        ({"degrees": 1000}, "degrees: has to be less than or equal to 360"),
        ({"distance": -1}, "distance: has to be greater than 0"),
        ({"learning_rate": -1}, "learning_rate: has to be greater than or equal to 0"),
        ({"weight_clamp": 2}, "weight_clamp: has to be less than or equal to 1"),
        ({"form": "magic"}, "form"),
        ({"magic": 1}, "magic: is not known"),
        ({"depth": {"path": "absent.npy"}}, "absent.npy"),
    ],
)
def test_wrong_values_are_named(
    change: dict[str, Any], told: str, model: undust.VideoDiffusion, photo: Image.Image, depth: Path
):
    with pytest.raises(UndustError, match=told):
        model.recipe(photo, known={**of_depth(depth), **change}, **QUICK)


def test_a_depth_map_of_another_size_is_refused(
    model: undust.VideoDiffusion, photo: Image.Image, depth: Path
):
    with pytest.raises(UndustError, match="32x24"):
        model.recipe(photo.resize((40, 30)), known=of_depth(depth), **QUICK)


def test_a_sampler_between_the_levels_is_refused(
    model: undust.VideoDiffusion, photo: Image.Image, depth: Path
):
    with pytest.raises(UndustError, match="is not one of its 3 noise levels"):
        model.animate(photo, known=of_depth(depth), sampler="dpm2", **QUICK)
