"""The texts of an explanation in its languages: one TOML file for each part and language."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

from undust.regular import read_text

FOLDER = Path(__file__).parent / "texts"
COMMON = "common"  # the texts of the page itself

Language = Literal["en", "ko"]
LANGUAGES: tuple[Language, ...] = ("en", "ko")


class PartTexts:
    """The texts of one part: `say("label", n=3)` is its `label` with {n} filled in."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    def __call__(self, key: str, /, **values: object) -> str:
        """The text; KeyError for one that there is not."""
        return self._texts[key].format(**values)


class Translation:
    """All texts in one language."""

    def __init__(self, language: Language) -> None:
        self.language: Language = language

    def part(self, name: str) -> PartTexts:
        """The texts of a part, or of `COMMON`."""
        return PartTexts(read(self.language, name))


@cache
def read(language: Language, name: str) -> dict[str, str]:
    """The texts of a file as they are stored."""
    return tomllib.loads(read_text(FOLDER / language / f"{name}.toml"))
