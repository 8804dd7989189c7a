"""The texts of an explanation: the same in every language."""

from __future__ import annotations

import string

import pytest

from undust.explain.parts import PARTS
from undust.explain.texts import COMMON, FOLDER, LANGUAGES, read

REQUIRED = {"title", "question", "why", "without", "reading"}


def placeholders(text: str) -> set[tuple[str | None, ...]]:
    """What is filled in, and how it is written: what fits the one language fits the other."""
    parts = string.Formatter().parse(text)
    return {(field, spec, form) for _, field, spec, form in parts if field is not None}


@pytest.mark.parametrize("name", [COMMON, *PARTS])
def test_languages_have_the_same_texts(name: str):
    first, *others = (read(language, name) for language in LANGUAGES)
    for other in others:
        assert other.keys() == first.keys()
        assert all(placeholders(other[key]) == placeholders(first[key]) for key in first)
        assert all(text.strip() for text in other.values())
    if name != COMMON:
        assert first.keys() >= REQUIRED


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_file_is_left_over(language: str):
    names = {path.stem for path in (FOLDER / language).iterdir()}
    assert names == {COMMON, *PARTS}


def test_korean_is_korean():
    for name in PARTS:
        prose = " ".join(read("ko", name)[key] for key in sorted(REQUIRED - {"title"}))
        hangul = sum("가" <= letter <= "힣" for letter in prose)
        assert hangul > len(prose) / 3, name
