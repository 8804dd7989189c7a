"""The loop that paints: batches, steps, and the noise of each picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from painter import ColourPainter
from undust.diffusion.noise import PictureNoise
from undust.diffusion.process import PROCESSES, VP
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError
from undust.formats.recipe_png import read_recipe
from undust.generation import loop
from undust.networks.conditioning import CallOptions, Conditioning
from undust.recipe.recipe import Recipe


@dataclass
class Painter(ColourPainter):
    """A model that knows what it is asked for: one colour for each prompt, 1 pixel a latent pixel.

    With the exact denoiser of a single picture every sampler ends at that picture.
    """

    process: VP

    def denoise(
        self, x: Tensor, sigma: Tensor, cond: Conditioning, options: CallOptions | None = None, /
    ) -> Tensor:
        assert len(x) == len(sigma) == len(cond)
        return cond.text[:, 0, :, None, None].expand_as(x)


@pytest.fixture
def painter() -> Painter:
    return Painter(PROCESSES["scaled-linear"]())


def recipe(prompt: str = "red", **fields: Any) -> Recipe:
    size = {"width": 4, "height": 2}
    return Recipe.read({"prompt": prompt, "seed": 1, "guidance": 1, **size, **fields})


def steps(painter: Painter, *recipes: Recipe, **options: Any) -> list[loop.Step]:
    return list(loop.sample_batch(painter, recipes, **options))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_sampler_comes_to_what_was_asked_for(painter: Painter, sampler: str, schedule: str):
    asked = [
        recipe("red", sampler=sampler, schedule=schedule, steps=5, seed=seed) for seed in (1, 2)
    ]
    asked.append(recipe("grey", sampler=sampler, schedule=schedule, steps=5))
    pictures = loop.decode(asked, steps(painter, *asked)[-1])
    red, red_too, grey = (picture.image.getpixel((3, 1)) for picture in pictures)
    assert red == red_too == (255, 0, 0)
    # 0 lies on the edge between two bytes: the last digit of a float decides which.
    assert isinstance(grey, tuple) and set(grey) <= {127, 128}
    assert [picture.image.size for picture in pictures] == [(4, 2)] * 3


def test_guidance_goes_beyond_what_was_asked_for(painter: Painter):
    """Grey at scale 1.5 away from black: 1.5·0 − 0.5·(−1) = 0.5, in each channel."""
    last = steps(painter, recipe("grey", guidance=1.5))[-1]
    torch.testing.assert_close(last.x, torch.full((1, 3, 2, 4), 0.5))


def test_the_negative_prompt_is_what_guidance_goes_away_from(painter: Painter):
    last = steps(painter, recipe("grey", negative="red", guidance=2))[-1]
    torch.testing.assert_close(last.x[0, :, 0, 0], torch.tensor([-1.0, 1.0, 1.0]))


def test_steps_are_counted_and_come_down_to_no_dust(painter: Painter):
    shown = steps(painter, recipe(steps=4, schedule="leading"))
    assert [(step.index, step.total) for step in shown] == [(k, 4) for k in range(4)]
    sigmas = SCHEDULES["leading"](painter.process, 4)
    assert [step.sigma for step in shown] == pytest.approx(sigmas[1:].tolist())
    assert shown[-1].sigma == 0


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if SAMPLERS[name].path])
def test_more_steps_follow_the_same_noise(painter: Painter, sampler: str):
    """With a single picture to find, x at a level is that picture and the path so far, no more."""
    few, many = (
        {
            round(step.sigma, 9): step.x
            for step in steps(painter, recipe(sampler=sampler, schedule="exponential", steps=n))
        }
        for n in (5, 9)
    )
    assert len(few.keys() & many.keys()) == len(few)
    for sigma, x in few.items():
        torch.testing.assert_close(x, many[sigma], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if SAMPLERS[name].adaptive])
def test_adaptive_steps_count_the_levels_that_they_pass(painter: Painter, sampler: str):
    """Only the last step is the last of those that were asked for, however many there are."""
    shown = steps(painter, recipe(sampler=sampler, steps=3))
    places = [step.index for step in shown]
    assert places == sorted(places)
    assert [step.index + 1 == step.total for step in shown] == [False] * (len(shown) - 1) + [True]


def test_a_preview_shows_the_estimate_of_every_picture(painter: Painter):
    first = steps(painter, recipe("red"), recipe("grey"))[0]
    sheet = first.preview()
    assert sheet.size == (8, 2)
    assert [sheet.getpixel((x, 0)) for x in (0, 3, 4, 7)] == [
        *[(255, 0, 0)] * 2,
        *[(128, 128, 128)] * 2,
    ]


def test_it_begins_from_the_pictures_noise(painter: Painter):
    """One step of Euler with the estimate x0: x₁ = x0 + σ₁/σ₀·(x − x0), solved for x."""
    seeds = [5, 6]
    asked = [recipe("grey", seed=seed, sampler="euler", steps=3) for seed in seeds]
    first = steps(painter, *asked)[0]
    sigmas = SCHEDULES["karras"](painter.process, 3)
    start = first.x * float(sigmas[0] / sigmas[1])
    noise = PictureNoise(seeds, (3, 2, 4)).start()
    torch.testing.assert_close(start, noise * float((1 + sigmas[0] ** 2).sqrt()))


def test_noise_can_be_given_for_one_picture_or_several(painter: Painter):
    noise = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    (own,) = steps(painter, recipe("grey", steps=1, sampler="ddim"), noise=noise)
    (other,) = steps(painter, recipe("grey", steps=1, sampler="ddim"), noise=noise[None])
    assert torch.equal(own.x, other.x)
    given = steps(painter, recipe("grey", steps=2, sampler="ddim"), noise=noise)
    drawn = steps(painter, recipe("grey", steps=2, sampler="ddim"))
    assert not torch.equal(given[0].x, drawn[0].x)
    for shape in ((3, 4, 2), (2, 3, 2, 4)):
        with pytest.raises(UndustError, match=r"noise: its shape is .*has to be \[1, 3, 2, 4\]"):
            steps(painter, recipe(), noise=torch.zeros(shape))


PAINTER = Painter(PROCESSES["scaled-linear"]())
RECIPES = st.lists(
    st.builds(
        lambda prompt, size, steps, seed: recipe(
            prompt, width=size, height=size, steps=steps, seed=seed
        ),
        st.sampled_from(["red", "grey"]),
        st.sampled_from([64, 2048]),
        st.sampled_from([1, 2]),
        st.integers(0, 5),
    ),
    max_size=80,
)


@given(RECIPES)
def test_batches_are_the_recipes_in_order_told_their_place(recipes: list[Recipe]):
    parts = list(loop.batches(PAINTER, recipes))
    plain = {"batch": 1, "place": 0}
    assert [told.model_copy(update=plain) for part in parts for told in part] == recipes
    for part in parts:
        assert len({told.settings for told in part}) == 1
        assert [(told.batch, told.place) for told in part] == [
            (len(part), place) for place in range(len(part))
        ]
        assert (
            len(part) == 1
            or sum(told.width * told.height for told in part) <= loop.MAX_BATCH_PIXELS
        )


def test_exact_pictures_are_painted_one_by_one():
    recipes = [recipe(seed=seed) for seed in range(3)]
    assert list(loop.batches(PAINTER, recipes, exact=True)) == [[each] for each in recipes]
    assert [len(part) for part in loop.batches(PAINTER, recipes)] == [3]


def test_to_paint_again_takes_the_whole_batch():
    third = recipe(batch=4, place=2, seed=9)
    again = loop.rerun_batch(third)
    assert [(each.place, each.seed) for each in again] == [(k, 9) for k in range(4)]
    with pytest.raises(UndustError, match="made from given noise"):
        loop.rerun_batch(recipe(given_noise=True))


def test_a_saved_picture_has_its_recipe(painter: Painter, tmp_path: Path):
    asked = [recipe("red", seed=3)]
    (picture,) = loop.decode(asked, steps(painter, *asked)[-1])
    path = picture.save(tmp_path / "red.png")
    assert Recipe.read(read_recipe(path)) == picture.recipe == asked[0]
    assert picture.latent.shape == (3, 2, 4)
