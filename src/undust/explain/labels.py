"""Text in pictures, in whatever font of the machine has its letters."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# Usual fonts by the names of their files: with Latin, Greek and Cyrillic letters, then with Korean,
# Chinese and Japanese ones; of Linux, Windows and macOS.
FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "arial.ttf", "Arial.ttf"),
    *("NotoSansCJK-Regular.ttc", "NotoSansKR-Regular.otf", "NanumGothic.ttf", "UnDotum.ttf"),
    *("malgun.ttf", "AppleSDGothicNeo.ttc", "AppleGothic.ttf", "wqy-microhei.ttc"),
)
NOTHING = "\U0010ffff"  # no font has this character; it is drawn as one that is missing
SYLLABLE = re.compile("HANGUL SYLLABLE (.+)")


def drawn_width(text: str, size: int) -> int:
    """The width of `draw_label`'s text, in pixels."""
    shown, font = _shown(text, size)
    return round(font.getlength(shown))


def draw_label(
    image: Image.Image, place: tuple[float, float], text: str, size: int, anchor: str = "lt"
) -> None:
    """Draws a line of black text; size: in pixels; anchor: as Pillow's.

    In the first font that has all its letters. Without one, Korean is transcribed, as Unicode names
    its syllables; other letters that are missing lose their accents, or are drawn as "?".
    """
    shown, font = _shown(text, size)
    ImageDraw.Draw(image).text(place, shown, "black", font, anchor)


def can_draw(text: str) -> bool:
    """Whether a font of this machine has all letters of a text."""
    return any(_has_all(font, text) for font in _fonts(9))


def _has_all(font: Font, text: str) -> bool:
    return all(_has(font, letter) for letter in text)


def _shown(text: str, size: int) -> tuple[str, Font]:
    """The text as it can be drawn, and a font for it."""
    text = unicodedata.normalize("NFC", text)
    fonts = _fonts(size)
    for font in fonts:
        if _has_all(font, text):
            return text, font
    font = fonts[0]
    letters = (letter if _has(font, letter) else _transcribed(letter) for letter in text)
    return "".join(letters), font


def _transcribed(letter: str) -> str:
    """A Korean syllable in Latin letters, a letter without its accents, or "?"."""
    if found := SYLLABLE.fullmatch(unicodedata.name(letter, "")):
        return found[1].lower()
    base = unicodedata.normalize("NFKD", letter)[0]
    return base if base.isascii() else "?"


@cache
def _fonts(size: int) -> tuple[Font, ...]:
    """Pillow's own, and those of `FONTS` that are installed."""
    found: list[Font] = [ImageFont.load_default(size)]
    for name in FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(found)


@cache
def _has(font: Font, letter: str) -> bool:
    """Whether a font has a letter: otherwise it draws that of `NOTHING`."""
    if letter.isspace() or letter.isascii():
        return True
    return _drawn(font, letter) != _drawn(font, NOTHING)


def _drawn(font: Font, letter: str) -> bytes:
    image = Image.new("L", (64, 64))
    ImageDraw.Draw(image).text((16, 16), letter, 255, font)
    return image.tobytes()
