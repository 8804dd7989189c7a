"""What a recipe accepts, and how it refuses."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError
from undust.latent.references import image_of, resolved_image
from undust.recipe.files import ImageRef
from undust.recipe.recipe import FIRST_VERSION, OWN, Recipe

LEAST: dict[str, Any] = {"prompt": "a cat", "seed": 1, "width": 64, "height": 32}


def test_a_recipe_is_what_its_fields_are():
    recipe = Recipe.read({**LEAST, "steps": 7, "sampler": "heun", "negative": "흐림"})
    assert Recipe.read(recipe.model_dump()) == recipe
    assert (recipe.steps, recipe.sampler, recipe.negative) == (7, "heun", "흐림")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_sampler_and_schedule_can_be_asked_for(sampler: str, schedule: str):
    Recipe.read({**LEAST, "sampler": sampler, "schedule": schedule})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": 0}, "steps: has to be greater than or equal to 1, not 0"),
        ({"steps": -3}, "steps: .*not -3"),
        ({"steps": 1001}, "steps: .*1000, not 1001"),
        ({"steps": "many"}, "steps: .*not 'many'"),
        ({"guidance": -1}, "guidance: .*not -1"),
        ({"guidance": float("nan")}, "guidance: .*not nan"),
        ({"guidance": float("inf")}, "guidance: .*not inf"),
        ({"seed": -1}, "seed: .*not -1"),
        ({"seed": 2**63}, "seed: .*not 9223372036854775808"),
        ({"width": 0}, "width: .*not 0"),
        ({"width": 4096, "height": 4104}, "size: 4096x4104 is too large; 4096x4096 pixels"),
        ({"width": 4096, "height": 4096, "batch": 2}, "too large for 2 at once"),
        ({"batch": 2, "place": 2}, "place: 2 is not in a batch of 2"),
        ({"prompt": "x" * 10_001}, "prompt: "),
        ({"prompt": None}, "prompt: .*not None"),
        ({"sampler": "eular"}, "unknown sampler 'eular'; did you mean 'euler'"),
        ({"schedule": "karas"}, "unknown schedule 'karas'; did you mean 'karras'"),
        ({"smapler": "euler"}, "smapler: "),
    ],
)
def test_what_cannot_be_painted_is_named(fields: dict[str, Any], said: str):
    with pytest.raises(UndustError, match=said):
        Recipe.read({**LEAST, **fields})


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.none())


@given(st.dictionaries(st.sampled_from(list(Recipe.model_fields)) | st.text(), VALUES))
def test_anything_in_a_file_is_a_recipe_or_a_line_that_says_why_not(fields: dict[str, Any]):
    try:
        recipe = Recipe.read({**LEAST, **fields})
    except UndustError:
        return
    assert Recipe.read(recipe.model_dump()) == recipe
    assert recipe.batch * recipe.width * recipe.height <= 4096 * 4096


# What is asked for beside words

PICTURE = {"path": "a.png", "hash": "0123456789abcdef"}
# A value for every field that says more than its default does.
MORE: dict[str, Any] = {
    "negative": "a dog",
    "steps": 7,
    "guidance": 2.5,
    "sampler": "heun",
    "schedule": "trailing",
    "deep_cache": 3,
    "token_merging": 0.5,
    "given_noise": True,
    "label": "cat",
    "maps": [PICTURE],
    "guides": [{"name": "pag", "scale": 2.0}],
    "toward": {"prompt": "a dog", "seed": 2, "part": 0.25},
    "init": PICTURE,
    "strength": 0.5,
    "mask": {"path": "b.png"},
    "mask_is_hole": True,
    "extend": [8, 0, 0, 8],
    "noise_level": 20,
    "upscale": {"factor": 1.5, "strength": 0.3},
    "refiner": {"model": "refiner", "model_hash": "01", "after": 0.7},
    "framing": {"original": [512, 768], "crop": [0, 64]},
    "clip_skip": 1,
    "loras": [{"path": "a", "hash": "01", "weight": -0.5}, {"path": "b"}],
    "embeddings": [{"path": "toy", "hash": "01", "word": "<toy>"}],
    "controls": [{"path": "a", "picture": PICTURE, "edges": True, "weight": 0.8, "end": 0.5}],
    "precision": "bfloat16",
    "engine": "cpu",
    "low_memory": True,
    "model": "tiny",
    "model_path": "models/tiny.safetensors",
    "model_hash": "0123456789",
    "vae": {"path": "vae.safetensors", "hash": "01"},
    "undust": "0.1",
}
NEED = {
    **{name: {"init": PICTURE} for name in ("strength", "mask", "extend", "noise_level")},
    "mask_is_hole": {"init": PICTURE, "mask": {"path": "b.png"}},
    "place": {"batch": 3},
}


def with_field(name: str) -> Recipe:
    return Recipe.read({**LEAST, **NEED.get(name, {}), name: MORE[name]})


def test_every_field_is_tried():
    assert Recipe.model_fields.keys() - LEAST.keys() - {"batch", "place"} == MORE.keys()


@pytest.mark.parametrize("name", MORE)
def test_every_field_comes_back_from_a_file(name: str):
    recipe = with_field(name)
    dumped = json.loads(json.dumps(recipe.model_dump()))
    assert Recipe.read(dumped) == recipe
    assert dumped[name] != Recipe.read(LEAST).model_dump().get(name)


def test_all_fields_at_once_come_back():
    without = {"mask", "mask_is_hole", "extend", "noise_level"}
    fields = {name: value for name, value in MORE.items() if name not in without}
    recipe = Recipe.read({**LEAST, **fields, "batch": 3, "place": 2})
    assert Recipe.read(json.loads(json.dumps(recipe.model_dump()))) == recipe


def test_what_says_nothing_is_left_out():
    """A recipe of words alone has the fields that it had before there were others."""
    assert list(Recipe.read(LEAST).model_dump()) == [
        *("prompt", "steps", "guidance", "sampler", "schedule", "seed", "width", "height"),
        *("batch", "place", "given_noise", "model", "model_hash", "undust"),
    ]
    assert Recipe.read({**LEAST, "negative": ""}).model_dump()["negative"] == ""
    silent = {name: [] for name in ("guides", "loras", "embeddings", "controls")}
    assert Recipe.read({**LEAST, **silent}) == Recipe.read(LEAST)


def test_recipes_of_before_are_read():
    """As the first version wrote them."""
    old = {
        "prompt": "a cat",
        "negative": "",
        "steps": 20,
        "guidance": 4.0,
        "sampler": "dpmpp-2m",
        "schedule": "karras",
        "seed": 7,
        "width": 64,
        "height": 64,
        "batch": 2,
        "place": 1,
        "given_noise": False,
        "guides": [],
        "model": "emoji",
        "model_hash": "4ebc33031b",
        "undust": "0.1.0",
    }
    recipe = Recipe.read(old)
    assert (recipe.first_pass_steps, recipe.total_steps, recipe.final_size) == (20, 20, (64, 64))
    assert (recipe.init, recipe.loras, recipe.framing) == (None, (), None)
    assert recipe.model_dump() == {name: value for name, value in old.items() if name != "guides"}


@pytest.mark.parametrize("name", [*MORE, "width", "height", "prompt", "seed", "batch", "place"])
def test_settings_are_what_the_pictures_of_a_batch_share(name: str):
    base = Recipe.read({**LEAST, **NEED.get(name, {})})
    own = {"width": 128, "height": 128, "prompt": "a dog", "seed": 9, "batch": 2, "place": 1}
    other = Recipe.read({**LEAST, **NEED.get(name, {}), name: {**MORE, **own}[name]})
    assert (other.settings == base.settings) is (name in OWN)


def test_a_recipe_says_how_strongly_a_picture_is_painted_over():
    over = Recipe.read({**LEAST, "init": PICTURE})
    within = Recipe.read({**LEAST, "init": PICTURE, "mask": PICTURE, "strength": None})
    assert (over.strength, within.strength) == (0.75, 1.0)
    larger = Recipe.read({**LEAST, "init": PICTURE, "noise_level": 20})
    assert (larger.strength, Recipe.read(LEAST).strength) == (None, None)


def test_the_picture_that_is_begun_from_is_one_of_the_settings(tmp_path: Path):
    """By what is in it, whether it has been read yet or not."""
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png")
    read = Recipe.read({**LEAST, "init": resolved_image(ImageRef.of(tmp_path / "a.png"))})
    unread = Recipe.read(read.model_dump())
    assert read == unread
    assert read.settings == unread.settings
    assert unread.init is not None and image_of(unread.init).size == (64, 32)
    assert read == unread
    Image.new("RGB", (64, 32), "red").save(tmp_path / "a.png")
    changed = Recipe.read({**LEAST, "init": resolved_image(ImageRef.of(tmp_path / "a.png"))})
    assert changed.settings != read.settings


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["strength"], r"strength: it needs a picture to start from \(init\)"),
        (["mask"], "mask: it needs a picture"),
        (["extend"], "extend: it needs a picture"),
        (["noise_level"], "noise_level: it needs a picture"),
        (["init", "mask", "upscale"], "upscale: the second pass would change what the mask"),
        (["init", "extend", "upscale"], "upscale: the second pass"),
        (["init", "noise_level", "strength"], "strength: not possible with an upscaling model"),
        (["init", "noise_level", "mask"], "mask: not possible with an upscaling model"),
        (["init", "noise_level", "extend"], "extend: not possible with an upscaling model"),
        (["init", "noise_level", "upscale"], "upscale: not possible with an upscaling model"),
    ],
)
def test_wishes_that_exclude_or_need_one_another(names: list[str], said: str):
    with pytest.raises(UndustError, match=said):
        Recipe.read({**LEAST, **{name: MORE[name] for name in names}})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"strength": 0}, "strength: .*not 0"),
        ({"strength": 1.01}, "strength: .*not 1.01"),
        ({"strength": float("nan")}, "strength: .*not nan"),
        ({"noise_level": 1000}, "noise_level: .*not 1000"),
        ({"extend": [1, 2, 3]}, "extend"),
        ({"extend": [0, 0, 0, -1]}, r"extend\.3: .*not -1"),
        ({"init": {"path": "a" * 5000}}, r"init\.path"),
        ({"init": "a.png"}, "init: .*not 'a.png'"),
        ({"init": {"path": "a", "colour": 1}}, r"init\.colour"),
        ({"clip_skip": 0}, "clip_skip: .*not 0"),
        ({"loras": [{"path": "a"}] * 65}, "loras: "),
        ({"loras": [{"path": "a", "weight": float("inf")}]}, r"loras\.0\.weight: .*not inf"),
        ({"loras": [{"path": ""}]}, r"loras\.0\.path"),
        ({"embeddings": [{"path": "a", "word": ""}]}, r"embeddings\.0\.word"),
        ({"controls": [{"path": "a"}]}, r"controls\.0\.picture is missing"),
        ({"refiner": {"model": "a", "after": 2}}, r"refiner\.after: .*not 2"),
        ({"framing": {"crop": [0, -1]}}, r"framing\.crop\.1: .*not -1"),
        ({"upscale": {"factor": 9}}, r"upscale\.factor: .*not 9"),
        ({"width": 2048, "height": 2048, "upscale": {"factor": 2.1}}, "is too large"),
        ({"batch": 4, "width": 2048, "height": 2048, "upscale": {"factor": 2}}, "for 4 at once"),
        *(
            ({"controls": [{"path": "a", "picture": PICTURE, "start": a, "end": b}]}, "no interval")
            for a, b in ((0.5, 0.5), (1, 0), (0.7, 0.2))
        ),
    ],
)
def test_wishes_that_cannot_be(fields: dict[str, Any], said: str):
    with pytest.raises(UndustError, match=said):
        Recipe.read({**LEAST, "init": PICTURE, **fields})


@pytest.mark.parametrize(
    ("fields", "taken", "total"),
    [
        ({}, 20, 20),
        ({"init": PICTURE}, 15, 15),
        ({"init": PICTURE, "strength": 0.5}, 10, 10),
        ({"init": PICTURE, "strength": 1}, 20, 20),
        ({"init": PICTURE, "strength": 0.01}, 1, 1),
        ({"init": PICTURE, "mask": PICTURE}, 20, 20),
        ({"init": PICTURE, "mask": PICTURE, "strength": 0.3}, 6, 6),
        ({"init": PICTURE, "extend": [1, 0, 0, 0]}, 20, 20),
        ({"init": PICTURE, "noise_level": 20}, 20, 20),
        ({"upscale": {"factor": 2}}, 20, 26),
        ({"upscale": {"factor": 2, "strength": 0.001}}, 20, 21),
        ({"upscale": {"factor": 2, "strength": 1}}, 20, 40),
        ({"init": PICTURE, "strength": 0.5, "upscale": {"factor": 2, "strength": 0.3}}, 10, 16),
        ({"schedule": "5,3,1", "init": PICTURE, "strength": 0.5}, 1, 1),
    ],
)
def test_how_many_steps_are_taken(fields: dict[str, Any], taken: int, total: int):
    recipe = Recipe.read({**LEAST, **fields})
    assert (recipe.first_pass_steps, recipe.total_steps) == (taken, total)


@pytest.mark.parametrize(
    ("steps", "strength", "taken"),
    [(100, 0.29, 29), (50, 0.58, 29), (90, 0.7, 63), (1000, 0.001, 1), (3, 0.999999, 2)],
)
def test_a_share_of_the_steps_as_people_count(steps: int, strength: float, taken: int):
    assert taken_of(steps, strength) == taken


@given(st.integers(1, 1000), st.decimals("0.0001", "1", places=4))
def test_a_share_of_the_steps(steps: int, strength: Decimal):
    """At least one and at most all, rounded down, by exact arithmetic."""
    assert taken_of(steps, float(strength)) == max(1, math.floor(steps * strength))


def taken_of(steps: int, strength: float, **fields: Any) -> int:
    asked = {"steps": steps, "init": PICTURE, "strength": strength}
    return Recipe.read({**LEAST, **asked, **fields}).first_pass_steps


def test_recipes_of_the_first_version_keep_their_steps():
    """28 of 100 at 0.29: their pictures are made again as they were."""
    assert taken_of(100, 0.29, undust=FIRST_VERSION) == 28
    assert taken_of(100, 0.3, undust=FIRST_VERSION) == 30


@given(st.integers(1, 1000), st.decimals("1.01", "8", places=2))
def test_a_larger_picture_has_the_size_that_was_asked_for(side: int, factor: Decimal):
    """By exact arithmetic, which 200 × 1.1 = 220.00000000000003 is not."""
    fields = {**LEAST, "width": side, "height": 1, "upscale": {"factor": float(factor)}}
    recipe = Recipe.read(fields)
    assert recipe.final_size == (math.ceil(side * factor), math.ceil(factor))
    assert Recipe.read({**LEAST, "width": side, "height": 1}).final_size == (side, 1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"loras": [1] * 10**5}, "Recipe: loras has 100,000 entries"),
        ({f"a{number}": 1 for number in range(9999)}, "entries; at most 1,000 are read"),
        (
            {"framing": {f"a{number}": 1 for number in range(9999)}},
            "framing has 9,999 entries",
        ),
        ({"half\ud800": 1}, r"the name of a field: has to be a valid string.* 'half\\ud800'"),
        ({"prompt": "a" * 10**5}, "prompt: has to have at most 10000 characters, not 'aaa"),
        ({"two\nlines": "\n" * 10**5}, "lines.*: is not known"),
        ({"sampler": "x\n" * 10**5}, r"unknown sampler ''x\\n.*known: "),
        ({"framing": [[[[[[[1]]]]]]] * 9}, "framing: has to be .* not "),
    ],
)
def test_much_of_what_cannot_be_is_said_briefly(fields: dict[str, Any], said: str):
    with pytest.raises(UndustError, match=said) as caught:
        Recipe.read({**LEAST, **fields})
    assert len(str(caught.value)) < 800
    assert str(caught.value).isprintable()
