"""docs/why has the texts that `undust explain` shows now, and its sheets."""

from __future__ import annotations

from pathlib import Path

import pytest

from undust.explain.parts import PARTS
from undust.explain.texts import LANGUAGES, Language, read

FOLDER = Path(__file__).parents[2] / "docs" / "why"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_has_the_texts_of_now(language: Language):
    page = (FOLDER / f"{language}.md").read_text("utf-8")
    for name in PARTS:
        texts = read(language, name)
        missing = [
            key
            for key in ("title", "question", "why", "without", "reading")
            if texts[key].strip() not in page
        ]
        assert not missing, f"{name}: run scripts/why_pages.py for {missing}"
        assert f"pictures/{name}-{language}.webp" in page


def test_every_sheet_is_used():
    expected = {f"{name}-{language}.webp" for name in PARTS for language in LANGUAGES}
    assert {path.name for path in (FOLDER / "pictures").iterdir()} == expected
