"""PNG pictures that carry the recipe they were made by.

Two text chunks: `undust`, the recipe as JSON, from which the picture can be made again; and
`parameters`, the text that Stable Diffusion web UIs and picture sites read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from PIL import Image, PngImagePlugin

from undust.errors import UndustError
from undust.formats.a1111 import a1111_parameters
from undust.formats.files import atomic
from undust.formats.metadata import containers, programs
from undust.formats.metadata.containers import A1111_KEY, KEY, LIMIT

OTHERS = {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl"}


def check_name(path: Path) -> None:
    """Raises UndustError for a file's name that says another kind of picture."""
    if path.suffix.lower() in OTHERS:
        raise UndustError(
            f"{path}: pictures are written as PNG, which holds their recipe; "
            f"{path.with_suffix('.png')} would be"
        )


def write_picture(path: Path, image: Image.Image, recipe: Mapping[str, Any]) -> None:
    """Writes an 8-bit picture and its recipe; the same two always give the same bytes.

    Raises UndustError for a recipe that is too long or not JSON, and as `files.atomic` does.
    """
    try:
        own = json.dumps(recipe, ensure_ascii=False, sort_keys=True, allow_nan=False)
        size = len(own.encode())
    except (TypeError, ValueError) as error:
        raise UndustError(f"cannot write {path}: its recipe is not plain text: {error}") from error
    if size > LIMIT:
        raise UndustError(f"cannot write {path}: its recipe has {size:,} bytes, {LIMIT:,} at most")
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt(KEY, own)
    # Latin-1 where that is enough, else iTXt.
    texts.add_text(A1111_KEY, a1111_parameters(recipe, image.size))
    bare = image.copy()
    bare.info = {}  # what the image remembers of where it came from is not part of this one
    with atomic(path) as temporary:
        bare.save(temporary, "PNG", pnginfo=texts)


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe in a picture that undust wrote, not yet checked for sense.

    Raises UndustError for a picture without a recipe, and as `read_texts` does.
    """
    texts = containers.read(path).found
    if KEY not in texts:
        raise UndustError(f"{path} carries no undust recipe{_other_program(texts)}")
    try:
        recipe = json.loads(texts[KEY])
    except (ValueError, RecursionError) as error:
        raise UndustError(f"{path} carries a damaged recipe: {error}") from error
    if not isinstance(recipe, dict):
        raise UndustError(f"{path} carries a damaged recipe: not an object")
    return cast("dict[str, Any]", recipe)


def read_texts(path: Path) -> dict[str, str]:
    """The texts `undust` and `parameters` of a PNG, JPEG, WebP, AVIF or TIFF, those that it has.

    Raises UndustError for a file that is absent, no such picture, damaged or cut short, and for
    texts of more than a MiB.
    """
    found = containers.read(path).found
    return {key: found[key] for key in (KEY, A1111_KEY) if key in found}


def _other_program(texts: Mapping[str, str]) -> str:
    """The end of the error for a picture that another program made."""
    if A1111_KEY in texts and not texts[A1111_KEY].lstrip().startswith("{"):
        return f"; it carries A1111's {A1111_KEY!r}: undust inspect"
    try:
        found = programs.read(texts)
    except UndustError:
        found = None
    return f"; it carries facts of {found.program}: undust inspect" if found else ""
