"""Pictures on the way from one prompt and seed to another."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

import undust
from undust.errors import UndustError
from undust.generation import loop
from undust.pipeline import LatentDiffusion
from undust.recipe.recipe import Recipe, between


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LatentDiffusion:
    return undust.load(tiny_model)


def painted(model: LatentDiffusion, recipes: list[Recipe]) -> torch.Tensor:
    *_, last = loop.sample_batch(model, recipes)
    return last.x


@pytest.mark.parametrize("sampler", ["dpmpp-2m", "euler-ancestral", "dpmpp-2m-sde"])
def test_the_ends_are_the_pictures_themselves(model: LatentDiffusion, sampler: str):
    options = {"sampler": sampler, "steps": 4, "negative": "a dog"}
    first = model.recipes("a cat", seed=1, **options)[0]  # pyright: ignore
    last = model.recipes("고양이", seed=2, **options)[0]  # pyright: ignore
    way = painted(model, between(first, last, 3))
    torch.testing.assert_close(way[0], painted(model, [first])[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(way[2], painted(model, [last])[0], rtol=1e-3, atol=1e-4)
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(way))


def test_nothing_changes_where_the_ends_are_one(model: LatentDiffusion):
    recipe = model.recipes("a cat", seed=1, steps=3)[0]
    for x in painted(model, between(recipe, recipe, 4)):
        torch.testing.assert_close(x, painted(model, [recipe])[0], rtol=1e-3, atol=1e-4)


def test_a_recipe_tells_where_it_lies(model: LatentDiffusion):
    first, last = (model.recipes(p, seed=s)[0] for p, s in (("a cat", 1), ("a dog", 5)))
    ways = [recipe.toward for recipe in between(first, last, 5)]
    assert [way.part for way in ways if way] == [0, 0.25, 0.5, 0.75, 1]
    assert {(way.prompt, way.seed) for way in ways if way} == {("a dog", 5)}
    assert "toward" not in first.model_dump()
    again = Recipe.read(between(first, last, 5)[1].model_dump())
    assert again == between(first, last, 5)[1]


def test_a_picture_on_the_way_is_made_again(model: LatentDiffusion):
    first, last = model.recipes("a cat", seed=1, steps=3, count=2)
    batch = next(iter(loop.batches(model, between(first, last, 3))))
    *_, step = loop.sample_batch(model, batch)
    pictures = loop.decode(batch, step)
    again = model.rerun(pictures[1].recipe)
    assert again.image.tobytes() == pictures[1].image.tobytes()


def test_ends_that_do_not_belong_together(model: LatentDiffusion):
    first = model.recipes("a cat", seed=1)[0]
    for other in ({"steps": 3}, {"negative": "a dog"}, {"guidance": 2.0}):
        with pytest.raises(UndustError, match="may differ in prompt and seed alone"):
            between(first, first.model_copy(update=other), 3)
    with pytest.raises(UndustError, match="count: 1 is too few"):
        between(first, first, 1)


@pytest.mark.parametrize("part", [-0.1, 1.1, float("nan"), "half"])
def test_parts_that_cannot_be(model: LatentDiffusion, part: object):
    fields = model.recipes("a cat", seed=1)[0].model_dump()
    with pytest.raises(UndustError, match=r"toward\.part"):
        Recipe.read({**fields, "toward": {"prompt": "x", "seed": 1, "part": part}})
