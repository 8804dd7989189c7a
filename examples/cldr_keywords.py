"""Keywords of emoji from the Unicode CLDR, where its files are installed.

An emoji has one name ("automobile"); keywords are the words that people search for ("car").
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

from undust.errors import UndustError
from undust.regular import open_regular

FOLDER = Path("/usr/share/unicode/cldr/common")  # Debian's unicode-cldr-core
_PARTS = ("annotations", "annotationsDerived")  # of emoji, and of emoji with tones and the like
_VARIATION = "\ufe0f"  # left out in CLDR's files


class Keywords:
    """The keywords of one language; empty if CLDR's files are not in `folder`."""

    def __init__(self, language: str, folder: Path = FOLDER) -> None:
        self.language = language
        self.folder = folder

    def __call__(self, text: str) -> list[str]:
        """The keywords of one emoji, without its name; empty if CLDR has none."""
        return self._words.get(text.replace(_VARIATION, ""), [])

    @cached_property
    def _words(self) -> Mapping[str, list[str]]:
        words: dict[str, list[str]] = {}
        names: dict[str, str] = {}
        for part in _PARTS:
            path = self.folder / part / f"{self.language}.xml"
            if not path.exists():
                continue
            try:
                with open_regular(path) as file:
                    annotations = ElementTree.parse(file).iter("annotation")
            except (OSError, ElementTree.ParseError) as error:
                raise UndustError(f"cannot read CLDR's keywords in {path}: {error}") from error
            for annotation in annotations:
                emoji, text = annotation.get("cp", ""), annotation.text or ""
                if annotation.get("type") == "tts":
                    names[emoji] = text
                else:
                    words[emoji] = [word.strip() for word in text.split("|") if word.strip()]
        return {
            emoji: [word for word in several if word != names.get(emoji)]
            for emoji, several in words.items()
        }
