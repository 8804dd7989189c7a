"""What a recipe accepts, and how it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError
from undust.generation.recipe import Recipe

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
