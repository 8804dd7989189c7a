from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undust.errors import UndustError
from undust.training import kinds, recipe_templates


@pytest.mark.parametrize("name", recipe_templates.names())
def test_a_template_is_a_recipe(name: str):
    text = recipe_templates.recipe(name)
    config = kinds.parse(tomllib.loads(text), name)
    assert config.complete().kind == config.kind
    assert text.startswith(f"# {recipe_templates.summary(name)}\n# Use: ")
    assert max(map(len, text.splitlines())) <= 120


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_every_folder_s_name_is_kept(folder: str):
    text = recipe_templates.recipe("first-stage", folder=folder)
    assert tomllib.loads(text)["data"]["folder"] == folder


def test_an_unknown_one_is_named():
    with pytest.raises(UndustError, match="did you mean 'inpainting'"):
        recipe_templates.recipe("in-painting")
