"""One model of a request: the command line, the recipe and the schema agree with it."""

from __future__ import annotations

from typing import get_type_hints

import pytest
import typer

from undust.cli import app
from undust.errors import UndustError
from undust.recipe.recipe import Recipe
from undust.recipe.request import OPTIONS, Request, json_schema, read_size, value_type

LEAST = {"prompt": "a", "seed": 1, "width": 8, "height": 8, "init": {"path": "a.png"}}
PER_REQUEST = {"size", "count", "speed"}  # which a recipe has in another form


def test_every_option_is_on_the_command_line():
    command = typer.main.get_command(app).commands["generate"]  # type: ignore[attr-defined]
    flags = {flag: each for each in command.params for flag in each.opts}
    for name, option in OPTIONS.items():
        shown = flags[f"--{(option.flag or name).replace('_', '-')}"]
        assert (shown.help, shown.metavar) == (option.help, option.metavar)
        assert shown.multiple == option.repeatable


def test_every_option_has_its_field_in_a_recipe():
    assert OPTIONS.keys() - PER_REQUEST <= Recipe.model_fields.keys()


@pytest.mark.parametrize(
    "name", [n for n, each in OPTIONS.items() if each.ge is not None and n not in PER_REQUEST]
)
def test_a_recipe_has_the_limits_of_the_request(name: str):
    with pytest.raises(UndustError, match=f"^{name}: has to be greater than or equal to"):
        Recipe.read({**LEAST, name: OPTIONS[name].ge - 1})  # type: ignore[operator]


def test_the_schema_has_types_limits_and_descriptions():
    fields = json_schema()["properties"]
    assert fields.keys() == get_type_hints(Request).keys() == OPTIONS.keys()
    assert fields["steps"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 1000}
    assert all(fields[name]["description"] == option.help for name, option in OPTIONS.items())


def test_types_on_the_command_line():
    assert [value_type(name) for name in ("steps", "guidance", "sampler", "upscale", "size")] == [
        int,
        float,
        str,
        str,
        str,
    ]


@pytest.mark.parametrize(
    ("text", "size"),
    [("64x64", (64, 64)), ("512X768", (512, 768)), ("32×16", (32, 16)), (64, (64, 64))],
)
def test_sizes(text: str | int, size: tuple[int, int]):
    assert read_size(text) == read_size(size) == size


@pytest.mark.parametrize(
    "text", ["64", "64x", "x64", "-64x64", "64x64x3", "6.4x64", "", "1" * 20, (1, 2, 3), 6.4]
)
def test_no_sizes(text: object):
    with pytest.raises(UndustError, match="WIDTHxHEIGHT"):
        read_size(text)
