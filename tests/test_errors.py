"""Errors are one short line, whatever names and values were met."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from undust.errors import LONGEST, NAME, UndustError, demand, printable, quoted, unknown


def test_what_can_be_printed_stays():
    assert str(UndustError("größe: 고양이 is 3, not 4")) == "größe: 고양이 is 3, not 4"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("two\nlines", r"two\nlines"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\u2028", r"\u2028"),
        ("half \ud800", r"half \ud800"),
        ("turned \u202e", r"turned \u202e"),
    ],
)
def test_what_cannot_is_escaped(message: str, line: str):
    assert str(UndustError(message)) == line


@given(st.text(st.characters(categories=["C", "Z", "L", "S"]), max_size=2000))
def test_any_message_is_a_line_that_can_be_written(message: str):
    line = str(UndustError(message))
    assert line.isprintable()
    assert len(line) <= LONGEST
    assert line.encode().decode() == line
    assert str(UndustError(line)) == line


def test_an_error_comes_through_another_process():
    error = UndustError("a\n" + "b" * 5000)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_names_are_short():
    assert printable("conv_in.weight") == "conv_in.weight"
    assert printable("a\nb") == r"'a\nb'"
    assert len(printable("a" * 500)) == NAME


def deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.5, "3.5"),
        ("blue", "'blue'"),
        ("two\nlines", r"'two\nlines'"),
        ([1, 2, 3], "[1, 2, 3]"),
        ([0] * 10**6, "[0, 0, 0, 0, 0, 0, ...]"),
        (deep(900), "[[[[...]]]]"),
    ],
)
def test_values_are_as_python_writes_them(value: object, text: str):
    assert quoted(value) == text
    assert len(quoted("a" * 10**6)) <= 60


def test_what_is_known_is_said_also_after_a_long_name():
    assert str(unknown("sampler", "x" * 10**5, ["euler"])).endswith("known: euler")


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    kind: Literal["one"] = "one"


class Other(BaseModel):
    kind: Literal["two"] = "two"


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    word: str = Field("", min_length=1, max_length=3, pattern="^a")
    whole: int = 0
    number: float = Field(0, gt=0, le=8)
    few: tuple[int, ...] = Field((), max_length=2)
    pair: tuple[int, int] = (0, 0)
    named: dict[str, int] = Field({}, min_length=1)
    inner: Inner = Inner()
    one: Inner | Other = Field(Inner(), discriminator="kind")
    place: Path = Path()
    on: bool = False


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"word": "abcd"}, "has to have at most 3 characters"),
        ({"word": ""}, "has to have at least 1 character"),
        ({"word": "b"}, "has to match pattern '^a'"),
        ({"word": 1}, "has to be a valid string"),
        ({"whole": "x"}, "has to be a valid integer"),
        ({"whole": 1.5}, "has to be a valid integer"),
        ({"whole": "9" * 5000}, "has to be a smaller number"),
        ({"number": float("nan")}, "has to be a finite number"),
        ({"number": 9}, "has to be less than or equal to 8"),
        ({"few": (1, 2, 3)}, "has to have at most 2 items"),
        ({"pair": (1, 2, 3)}, "has to have at most 2 items"),
        ({"pair": (1,)}, "is missing"),
        ({"named": {}}, "has to have at least 1 item"),
        ({"inner": 1}, "has to be a valid dictionary"),
        ({"inner": {"kind": "two"}}, "has to be 'one'"),
        ({"inner": {"size": 1}}, "is not known"),
        ({"one": {"kind": "three"}}, "'kind': 'three' is none of 'one', 'two'"),
        ({"one": {}}, "has no 'kind'"),
        ({"place": 3}, "has to be a path"),
        ({"on": "perhaps"}, "has to be a valid boolean"),
        ({"other": 1}, "is not known"),
        ({3: 1}, "has to be strings"),
    ],
)
def test_a_finding_of_pydantic_is_a_predicate(fields: dict[str, object], said: str):
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(fields)
    assert demand(caught.value.errors()[0]) == said
