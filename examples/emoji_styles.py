"""Emoji in three styles: Noto Color Emoji, and Fluent Emoji as flat and as 3D pictures.

    npm install --prefix data/npm @iconify-json/fluent-emoji-flat @lobehub/fluent-emoji-3d
    pip install resvg-py
    python examples/emoji_styles.py --packages data/npm/node_modules --out data/emoji-styles-64

Captions are those of emoji_set.py; those of Fluent Emoji also name the style ("a red car, 3D
style"). Held out are the skin tones that emoji_set.py holds out, in every style, and of a tenth of
the concepts one style: the model knows concept and style, but not the two together. Fluent Emoji
is Microsoft's, under the MIT licence.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from emoji_set import EmojiNames, EmojiRenderer, is_held_out
from PIL import Image

from undust.cli import console
from undust.datasets import image_folder
from undust.errors import UndustError

_VARIATION = 0xFE0F
_CANVAS, _LARGEST = 144, 136  # pixels: those of emoji_set.py, and the longer side of an emoji on it
# The package of 3D pictures has each of these two tones under the other's name (version 1.1.0).
_SWAPPED = {0x1F3FC: 0x1F3FD, 0x1F3FD: 0x1F3FC}
_Draw = Callable[[str, int], Image.Image | None]


@dataclass(frozen=True)
class Style:
    """A way to draw emoji, and the words for it."""

    name: str
    english: str  # after the name
    korean: str  # before it
    draw: _Draw

    def captions(self, row: Mapping[str, str]) -> dict[str, str]:
        """The English and Korean captions of emoji_set.py's row, with this style's words."""
        lists = {"text_keywords", "text_ko_keywords"} & row.keys()
        captions = {field: self._named(row[field], field) for field in ("text", "text_ko")}
        for field in sorted(lists):
            words = [word for word in row[field].split(", ") if word]
            captions[field] = ", ".join(self._named(word, field) for word in words)
        return captions

    def _named(self, words: str, field: str) -> str:
        if field.startswith("text_ko"):
            return f"{self.korean} {words}".strip()
        return f"{words} {self.english}".strip()


def styles(packages: Path) -> Iterator[Style]:
    """The three styles. Raises UndustError for a package that is not in `packages`."""
    noto = EmojiRenderer()
    yield Style(
        "noto", "", "", lambda text, size: noto.draw(text, size) if noto.can_draw(text) else None
    )
    yield Style(
        "flat",
        "in flat style",
        "플랫 스타일의",
        _flat(packages / "@iconify-json/fluent-emoji-flat"),
    )
    yield Style("3d", "in 3D style", "3D 스타일의", _shaded(packages / "@lobehub/fluent-emoji-3d"))


def _flat(package: Path) -> _Draw:
    """Draws the SVGs of an icon set of iconify."""
    try:
        renderer = import_module("resvg_py")
    except ImportError as error:
        raise UndustError("resvg-py is not installed; `pip install resvg-py` brings it") from error
    icons = _json(package / "icons.json")
    names = {_key(code): name for code, name in _json(package / "chars.json").items()}

    def draw(text: str, size: int) -> Image.Image | None:
        icon = icons["icons"].get(names.get(_key_of(text), ""))
        if icon is None:
            return None
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        )
        png = bytes(renderer.svg_to_bytes(svg_string=svg, width=2 * _CANVAS))
        return _on_white(Image.open(io.BytesIO(png)), size)

    return draw


def _shaded(package: Path) -> _Draw:
    """Opens the pictures of a folder whose file names are code points."""
    paths = {_key(path.stem): path for path in sorted((package / "assets").glob("*.webp"))}
    if not paths:
        raise UndustError(f"{package} has no pictures; `npm install @lobehub/fluent-emoji-3d`")

    def draw(text: str, size: int) -> Image.Image | None:
        path = paths.get(tuple(_SWAPPED.get(code, code) for code in _key_of(text)))
        return None if path is None else _on_white(Image.open(path), size)

    return draw


def _on_white(picture: Image.Image, size: int) -> Image.Image:
    """The drawn part of a picture in the middle of a white square, as large as a Noto emoji."""
    picture = picture.convert("RGBA")
    ink = picture.crop(picture.getbbox())
    ratio = _LARGEST / max(ink.size)
    ink = ink.resize(
        (max(1, round(ink.width * ratio)), max(1, round(ink.height * ratio))),
        Image.Resampling.LANCZOS,
    )
    canvas = Image.new("RGBA", (_CANVAS, _CANVAS), "white")
    canvas.alpha_composite(ink, ((_CANVAS - ink.width) // 2, (_CANVAS - ink.height) // 2))
    return canvas.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def _key(codes: str) -> tuple[int, ...]:
    return tuple(code for code in (int(c, 16) for c in codes.split("-")) if code != _VARIATION)


def _key_of(text: str) -> tuple[int, ...]:
    return tuple(code for code in map(ord, text) if code != _VARIATION)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UndustError(f"{path} cannot be read; install the npm packages ({error})") from error


def held_out_style(concept: str, names: list[str]) -> str | None:
    """The style in which a concept is held out: one of `names` for a tenth of the concepts."""
    number = int(hashlib.sha256(concept.encode()).hexdigest(), 16)
    return names[number // 10 % len(names)] if number % 10 == 0 else None


def build(folder: Path, packages: Path, size: int, observe: Callable[[int, int], object]) -> int:
    """Draws every emoji in every style that has it; the number of pictures.

    observe: called with (done, total) of the emoji. Raises UndustError for a folder that is not
    empty, and for absent packages.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UndustError(f"{folder} is not empty")
    names, drawn = EmojiNames(), list(styles(packages))
    rows: list[dict[str, str]] = []
    for style in drawn:
        (folder / style.name).mkdir(parents=True, exist_ok=True)
    every = list(names)
    for done, text in enumerate(every, 1):
        row = names.row(text)
        style_held_out = held_out_style(row["concept"], [style.name for style in drawn])
        for style in drawn:
            picture = style.draw(text, size)
            if picture is None:
                continue
            path = f"{style.name}/{row['file_name']}"
            picture.save(folder / path)
            held_out = is_held_out(text) or style.name == style_held_out
            rows.append(
                {
                    "file_name": path,
                    **style.captions(row),
                    "style": style.name,
                    "concept": row["concept"],
                    "code_points": row["code_points"],
                    "split": "test" if held_out else "train",
                }
            )
        observe(done, len(every))
    image_folder.write(folder, rows)
    return len(rows)


def main() -> None:
    """Builds the data set, with a progress bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--packages", type=Path, required=True, help="the folder node_modules")
    parser.add_argument("--out", type=Path, required=True, help="folder to build it in")
    parser.add_argument("--size", type=int, default=64, help="width and height, pixels")
    options = parser.parse_args()
    try:
        with console.counted("emoji", "drawing emoji") as observe:
            count = build(options.out, options.packages, options.size, observe)
    except (UndustError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    print(f"{options.out}: {count} pictures")


if __name__ == "__main__":
    main()
