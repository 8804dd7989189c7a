"""The data set of the built-in model: all emoji, with names in many languages.

    python examples/emoji_set.py --out data/emoji-64 --size 64

The pictures are from Noto Color Emoji (SIL Open Font License 1.1), the names from the Unicode CLDR
by the package `emoji`, the keywords from CLDR's own files where they are installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cldr_keywords import Keywords
from PIL import Image, ImageDraw, ImageFont, features

from undust.cli import console
from undust.datasets import image_folder
from undust.errors import UndustError
from undust.formats.files import workspace
from undust.regular import open_regular

_FONT = "NotoColorEmoji.ttf"
_FONT_SIZE = 109  # the only size of the font's bitmaps, 136 by 128 pixels
_CANVAS = 144  # the bitmap and a margin of 4 pixels, before it is resized
_TONES = ("🏻", "🏼", "🏽", "🏾", "🏿")
_HAIR = ("🦰", "🦱", "🦳", "🦲")
_PEOPLE = ("👨", "👩", "🧑", "👦", "👧", "🧒")
_LISTS = ("💏", "💑", "👪")  # "kiss", "couple with heart", "family": a list of people follows
_LOOKS = (*_TONES, *_HAIR)
_Words = Mapping[str, Sequence[str]]
_MORE_LOOKS: _Words = {"en": ("blond hair", "beard")}  # no emoji of their own
_MORE_PEOPLE: _Words = {"en": ("adult", "child"), "ko": ("성인", "아이", "남자 아이", "여자 아이")}
_FLAG = {"en": "flag", "zh": "旗"}  # the others write the word before each region
_VARIATION, _JOINER = "\ufe0f", "\u200d"


def build(
    folder: Path | str,
    size: int = 64,
    progress: Callable[[int, int], object] | None = None,
    only: Iterable[str] | None = None,
) -> int:
    """Draws every emoji of the font as a `size` by `size` PNG, with the metadata; their number.

    Each call makes the same bytes, so that a stopped build is continued by calling it again.
    progress: called with (done, total) after each picture; only: the emoji of a smaller set. Raises
    UndustError for a folder with anything but an earlier build of this size, an unknown emoji in
    `only`, and a missing font, package or Raqm.
    """
    if not 8 <= size <= 1024:
        raise UndustError(f"emoji of {size} pixels cannot be drawn; 8 to 1024 can")
    folder, renderer, names = Path(folder), EmojiRenderer(), EmojiNames()
    wanted = set(names) if only is None else set(only)
    for text in sorted(wanted.difference(names)):
        raise UndustError(f"{text!r} ({code_points(text)}) is not a fully qualified emoji")
    rows = {text: names.row(text) for text in sorted(wanted) if renderer.can_draw(text)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_other_files(folder, size, {row["file_name"] for row in rows.values()})
        with workspace(folder, folder) as place:  # `atomic` would sync each of thousands
            for done, (text, row) in enumerate(rows.items(), 1):
                renderer.draw(text, size).save(place / "new", "PNG")
                (place / "new").replace(folder / row["file_name"])
                if progress:
                    progress(done, len(rows))
    except OSError as error:
        raise UndustError(f"cannot build the data set in {folder}: {error}") from error
    image_folder.write(folder, rows.values())
    return len(rows)


class EmojiRenderer:
    """Draws emoji from the bitmaps of Noto Color Emoji."""

    def __init__(self) -> None:
        if not features.check("raqm"):
            raise UndustError(
                "this Pillow lacks Raqm, which joins emoji sequences; "
                "`pip install --force-reinstall Pillow` gets a build that has it"
            )
        path = find_font()
        try:
            self._font = ImageFont.truetype(path, _FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
        except OSError as error:
            raise UndustError(
                f"{path} has no colour bitmaps of size {_FONT_SIZE} ({error}); "
                "Debian's fonts-noto-color-emoji has"
            ) from error
        self._advance = self._font.getlength("😀")
        self._unknown_flag = self._bitmap("🇽🇽").tobytes()  # a white flag with a question mark
        if not self.can_draw("😀"):
            raise UndustError(f"{path} has no colour bitmaps; Debian's fonts-noto-color-emoji has")

    def can_draw(self, text: str) -> bool:
        """Whether the font has `text` as one glyph that is not empty.

        An unknown sequence is drawn as several glyphs side by side; an unknown character is an
        empty glyph, an unknown region a flag with a question mark.
        """
        if self._font.getlength(text) != self._advance:
            return False
        bitmap = self._bitmap(text)
        return bitmap.getbbox() is not None and bitmap.tobytes() != self._unknown_flag

    def draw(self, text: str, size: int) -> Image.Image:
        """One emoji in the middle of a white RGB square of `size` by `size` pixels."""
        ink = self.cut_out(text)
        corner = ((_CANVAS - ink.width) // 2, (_CANVAS - ink.height) // 2)
        picture = Image.new("RGBA", (_CANVAS, _CANVAS), "white")
        picture.alpha_composite(ink, corner)
        return picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)

    def cut_out(self, text: str) -> Image.Image:
        """One emoji as RGBA, without its transparent margin, of at most 136 by 128 pixels."""
        bitmap = self._bitmap(text)
        return bitmap.crop(bitmap.getbbox())

    def _bitmap(self, text: str) -> Image.Image:
        bitmap = Image.new("RGBA", (_CANVAS, _CANVAS))
        ImageDraw.Draw(bitmap).text((0, 0), text, font=self._font, embedded_color=True)
        return bitmap


def find_font() -> Path:
    """The path of Noto Color Emoji in the usual font folders. Raises UndustError if absent."""
    home = Path.home()
    data = [os.environ.get("XDG_DATA_HOME") or home / ".local/share"]
    data += (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":")
    folders = [Path(folder) / "fonts" for folder in data]
    folders += [home / ".fonts", home / "Library/Fonts", Path("/Library/Fonts")]
    for folder in folders:
        for path in sorted(folder.rglob(_FONT)):
            return path
    raise UndustError(
        f"the font {_FONT} is not installed; `apt install fonts-noto-color-emoji` "
        "(or the Noto Color Emoji package of your system) brings it"
    )


class EmojiNames:
    """The fully qualified emoji and their names in each language."""

    def __init__(self) -> None:
        try:
            import emoji
        except ImportError as error:
            raise UndustError(
                "the package emoji is not installed; `pip install 'undust[data]'` brings it"
            ) from error
        self.languages: list[str] = list(emoji.LANGUAGES)
        for language in self.languages:
            emoji.config.load_language(language)
        self._data: dict[str, dict[str, Any]] = emoji.EMOJI_DATA
        qualified = emoji.STATUS["fully_qualified"]
        self._emoji = sorted(e for e, data in self._data.items() if data["status"] == qualified)
        self._qualified = {e.replace(_VARIATION, ""): e for e in self._emoji}
        self._looks = {lang: self._all(lang, _LOOKS, _MORE_LOOKS) for lang in self.languages}
        self._people = {lang: self._all(lang, _PEOPLE, _MORE_PEOPLE) for lang in self.languages}
        self._keywords = {language: Keywords(language) for language in self.languages}

    def __iter__(self) -> Iterator[str]:
        """Every fully qualified emoji, in the order of its code points."""
        return iter(self._emoji)

    def row(self, text: str) -> dict[str, str]:
        """The row of metadata.jsonl for one emoji: its names, and keywords if there are any."""
        captions: dict[str, str] = {}
        for language in self.languages:
            field = "text" if language == "en" else f"text_{language}"
            captions[field] = self.caption(text, language)
            if keywords := self._keywords[language](text):
                captions[f"{field}_keywords"] = ", ".join(keywords)
        return {
            "file_name": "-".join(f"{ord(c):x}" for c in text) + ".png",
            **captions,
            "concept": self.concept(text),
            "code_points": code_points(text),
            "split": "test" if is_held_out(text) else "train",
        }

    def concept(self, text: str) -> str:
        """The emoji without skin tones, shared by its variants."""
        plain = "".join(c for c in text if c not in _TONES)
        return self._qualified.get(plain.replace(_VARIATION, ""), plain)

    def caption(self, text: str, language: str) -> str:
        """The name as CLDR writes it, such as "person: medium-dark skin tone, red hair".

        The package flattens it to ":person_medium-dark_skin_tone_red_hair:"; the part after the
        colon is recovered by the language's names for skin tones, hair and people.
        """
        name = self._name(text, language)
        if _is_flag(text):
            head = _FLAG.get(language) or self._name("🇰🇷", language).partition(" ")[0]
            return f"{head}: {name.removeprefix(head).strip()}"
        if text[-1] == "\u20e3" or text == "🔟":
            return ": ".join(name.rsplit(" ", 1))
        colon = self._list_start(text, name, language)
        if not colon:
            return name
        item = _any_of(self._looks[language] + self._people[language])
        items = re.sub(rf"({item})[ ,]*(?={item})", r"\1, ", name[colon:])
        return f"{name[:colon].rstrip(' ,')}: {items}"

    def _list_start(self, text: str, name: str, language: str) -> int:
        """Where in a name the list of people or looks begins; 0 if there is none."""
        if _JOINER in text:
            for head in (self._name(group, language) + " " for group in _LISTS):
                if name.startswith(head):
                    return len(head)
        if any(part in text for part in (*_LOOKS, "👱", "🧔")):
            first = re.search(_any_of(self._looks[language]), name)
            return first.start() if first else 0
        return 0

    def _name(self, text: str, language: str) -> str:
        flat = str(self._data[text][language]).strip(":")
        return " ".join(flat.replace("_", " ").split())

    def _all(self, language: str, emoji: Sequence[str], more: _Words) -> list[str]:
        return [*(self._name(e, language) for e in emoji), *more.get(language, ())]


def _any_of(words: Iterable[str]) -> str:
    longest_first = sorted(words, key=len, reverse=True)
    return f"(?>{'|'.join(map(re.escape, longest_first))})"


def code_points(text: str) -> str:
    """The characters in Unicode's notation, such as "U+1F9D1 U+1F3FD"."""
    return " ".join(f"U+{ord(c):04X}" for c in text)


def is_held_out(text: str) -> bool:
    """Whether an emoji is held out from training: a tenth of those with a skin tone.

    To draw it, a model has to combine an emoji and a tone that it knows from other pictures.
    """
    digest = hashlib.sha256(code_points(text).encode()).hexdigest()
    return any(tone in text for tone in _TONES) and int(digest, 16) % 10 == 0


def _is_flag(text: str) -> bool:
    """The flag of a region (two regional indicators) or a part of one (a black flag with tags)."""
    return "🇦" <= text[0] <= "🇿" or (text[0] == "🏴" and text[-1] == "\U000e007f")


def _refuse_other_files(folder: Path, size: int, expected: set[str]) -> None:
    """Refuses a folder with anything but an earlier build of the same size; removes leftovers."""
    leftovers = {str(Path(name).with_suffix(".tmp")) for name in expected} | {"metadata.tmp"}
    for path in sorted(folder.iterdir()):
        if path.name == image_folder.METADATA:
            with open_regular(path) as file:
                text = file.read().decode(errors="replace")
            listed = re.findall(r'"file_name": "([^"]*)"', text)
            ours = bool(listed) and expected.issuperset(listed)
        else:
            ours = path.name in expected or path.name in leftovers
            ours = ours or path.name.startswith(".undust-")  # of a write that was killed
        if not ours:
            raise UndustError(
                f"{folder} holds {path.name}, which is not of this data set; name an empty folder"
            )
        if path.name in leftovers:  # of an earlier version that was killed
            path.unlink()
        if path.suffix == ".png" and _width(path) not in (None, size):
            raise UndustError(
                f"{folder} holds emoji of {_width(path)} pixels; name another folder for {size}"
            )


def _width(path: Path) -> int | None:
    try:
        with open_regular(path) as file, Image.open(file) as picture:
            return picture.width
    except OSError:  # broken, to be drawn again
        return None


def main() -> None:
    """Builds the data set, with a progress bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to build it in")
    parser.add_argument("--size", type=int, default=64, help="width and height, pixels")
    options = parser.parse_args()
    try:
        with console.counted("pictures", "drawing emoji") as observe:
            count = build(options.out, options.size, observe)
    except UndustError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    samples = image_folder.read(options.out)
    held_out = sum(sample.split == "test" for sample in samples)
    print(f"{options.out}: {count} pictures, {held_out} of them held out from training")
    if not any("text_keywords" in sample.captions for sample in samples):
        print("names only: `apt install unicode-cldr-core` adds CLDR's keywords")


if __name__ == "__main__":
    main()
