from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undust.errors import UndustError
from undust.formats.a1111 import a1111_parameters, parse_a1111

RECIPE = {
    "prompt": "a smiling cat, 웃는 고양이",
    "negative": "blurry, text: none",
    "steps": 20,
    "sampler": "euler-ancestral",
    "schedule": "karras",
    "guidance": 7.0,
    "seed": 1,
    "width": 512,
    "height": 768,
    "model_hash": "0123456789",
    "model": 'my "best", so far: v2',
}
# In the form that the web UI's documentation shows it.
TEXT = """a smiling cat, 웃는 고양이
Negative prompt: blurry, text: none
Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 1, \
Model hash: 0123456789, Model: "my \\"best\\", so far: v2", Size: 512x768"""


def test_the_text_is_the_one_web_uis_write():
    assert a1111_parameters(RECIPE) == TEXT


def test_the_text_is_read_back():
    assert parse_a1111(TEXT) == RECIPE


def test_the_text_of_another_program_is_read():
    found = parse_a1111(
        "masterpiece, a (cat:1.2)\nin the rain\nNegative prompt: lowres,\nbad hands\n"
        "Steps: 30, Sampler: DPM++ 2M, Schedule type: Exponential, CFG scale: 6.5, Seed: 42, "
        'Size: 832x1216, Lora hashes: "a: 12, b: 34", Clip skip: 2, Version: v1.10.1'
    )
    assert found == {
        "prompt": "masterpiece, a (cat:1.2)\nin the rain",
        "negative": "lowres,\nbad hands",
        "steps": 30,
        "sampler": "dpmpp-2m",
        "schedule": "exponential",
        "guidance": 6.5,
        "seed": 42,
        "width": 832,
        "height": 1216,
        "other": {"Lora hashes": "a: 12, b: 34", "Clip skip": "2", "Version": "v1.10.1"},
    }


@pytest.mark.parametrize(
    "prompt", ["a cat", "a cat\nwith a hat: red, size: small", "", "ratio: 16:9, style: comic"]
)
def test_a_last_line_with_fewer_than_three_settings_is_prompt(prompt: str):
    assert parse_a1111(prompt) == {"prompt": prompt, "negative": ""}


def test_a_setting_cannot_pose_as_a_field():
    found = parse_a1111("a cat\nSteps: 1, Seed: 2, prompt: other, width: wide")
    assert found["prompt"] == "a cat"
    assert found["other"] == {"prompt": "other", "width": "wide"}


def test_a_number_that_is_none_is_named():
    with pytest.raises(UndustError, match=r"Steps has to be a number, not 'many'"):
        parse_a1111("a cat\nSteps: many, Seed: 1, CFG scale: 7")


WORDS = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=30)
LINES = (
    st.lists(WORDS, max_size=3)
    .map("\n".join)
    # The form has no way to write these; the recipe's own JSON has.
    .filter(lambda text: text == text.strip() and "\nNegative prompt:" not in "\n" + text)
)


@given(
    prompt=LINES,
    negative=LINES,
    settings=st.fixed_dictionaries(
        {
            "steps": st.integers(1, 1000),
            "seed": st.integers(0, 2**63 - 1),
            "guidance": st.floats(0, 1000),
        },
        optional={
            "sampler": st.sampled_from(["ddim", "ddpm", "euler-ancestral", "dpmpp-2m", "heun"]),
            "schedule": st.sampled_from(["karras", "leading", "exponential"]),
            "model": WORDS.filter(bool),
            "model_hash": WORDS.filter(bool),
        },
    ),
)
def test_any_recipe_comes_back(prompt: str, negative: str, settings: dict):
    recipe = {"prompt": prompt, "negative": negative, **settings}
    assert parse_a1111(a1111_parameters(recipe)) == recipe


@given(st.text() | st.lists(st.sampled_from('Steps: 1,Seed"\\\n '), max_size=60).map("".join))
def test_any_text_gives_a_recipe_or_an_error(text: str):
    try:
        assert "prompt" in parse_a1111(text)
    except UndustError as error:
        assert "parameters" in str(error)


@pytest.mark.parametrize("piece", ["a", " ", "a:", '"', 'a:"', "\\", 'a: "\\', "a b-/", ","])
def test_no_text_takes_long(piece: str):
    began = time.perf_counter()
    parse_a1111("\n" + piece * (2**18 // len(piece)))
    assert time.perf_counter() - began < 5
