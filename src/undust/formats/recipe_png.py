"""Pictures with their recipe in the metadata: PNG, JPEG and WebP.

Two texts: `undust`, the recipe as JSON, from which the picture can be made again; and `parameters`,
the text that Stable Diffusion web UIs and picture sites read. In a PNG they are text chunks; in a
JPEG or WebP they are the EXIF tags MakerNote and UserComment.
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
from undust.formats.metadata.containers import (
    A1111_KEY,
    EXIF_IFD,
    KEY,
    LIMIT,
    MAKER_NOTE,
    OWN_NOTE,
    USER_COMMENT,
)

WRITTEN = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
NOT_WRITTEN = {".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl", ".heic"}
EXIF_LIMIT = 65_533  # bytes of the one segment of a JPEG that holds it
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}


def check_name(path: Path) -> None:
    """Raises UndustError for the file name of a format that is not written."""
    if path.suffix.lower() in NOT_WRITTEN:
        raise UndustError(
            f"{path}: pictures are written as PNG, JPEG or WebP, for example to "
            f"{path.with_suffix('.png')}"
        )


def write_picture(path: Path, image: Image.Image, recipe: Mapping[str, Any]) -> None:
    """Writes an 8-bit picture and its recipe; the same input always gives the same bytes.

    The format is that of the suffix, PNG for unknown ones. PNG and WebP are lossless.
    Raises UndustError for a recipe that is too long or not JSON, and as `files.atomic` does.
    """
    told = texts_for(path, image.size, recipe)
    bare = image.copy()
    bare.info = {}  # without metadata of the image's source
    kind = WRITTEN.get(path.suffix.lower(), "PNG")
    with atomic(path) as temporary:
        bare.save(temporary, kind, **told, **SAVE_OPTIONS.get(kind, {}))


def texts_for(path: Path, size: tuple[int, int], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe as options of Pillow's save, for a picture file of that name and size.

    Raises UndustError for a recipe that does not fit.
    """
    kind = WRITTEN.get(path.suffix.lower(), "PNG")
    own = _as_json(path, recipe) if kind == "PNG" else recipe_note(path, recipe)
    parameters = a1111_parameters(recipe, size)
    if kind == "PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_itxt(KEY, own)
        texts.add_text(A1111_KEY, parameters)  # Latin-1 where that is enough, else iTXt
        return {"pnginfo": texts}
    exif = Image.Exif()
    tags = exif.get_ifd(EXIF_IFD)
    tags[USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be")
    tags[MAKER_NOTE] = own.encode()
    exif[EXIF_IFD] = tags
    content = exif.tobytes()
    if kind == "JPEG" and len(content) > EXIF_LIMIT:
        raise UndustError(
            f"cannot write {path}: its recipe of {len(content):,} bytes is too long for a JPEG; "
            f"write {path.with_suffix('.png').name} or .webp"
        )
    return {"exif": content}


def recipe_note(path: Path, recipe: Mapping[str, Any]) -> str:
    """The recipe as ASCII text with a prefix: a MakerNote, or the comment of a GIF or an MP4.

    Raises UndustError, with the path, for a recipe that is too long or not JSON.
    """
    _as_json(path, recipe)  # its errors, which escapes would hide: a text that is not Unicode
    note = OWN_NOTE.decode() + json.dumps(recipe, sort_keys=True)
    _check_length(path, len(note))
    return note


def _as_json(path: Path, recipe: Mapping[str, Any]) -> str:
    """The recipe as JSON. Raises UndustError, with the path, if it is too long or not JSON."""
    try:
        text = json.dumps(recipe, ensure_ascii=False, sort_keys=True, allow_nan=False)
        length = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise UndustError(f"cannot write {path}: its recipe is not valid JSON: {error}") from error
    _check_length(path, length)
    return text


def _check_length(path: Path, length: int) -> None:
    if length > LIMIT:
        raise UndustError(
            f"cannot write {path}: its recipe has {length:,} bytes, {LIMIT:,} at most"
        )


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe in a picture or film that undust wrote, not yet validated.

    Raises UndustError for a file without a recipe, and as `containers.read` does.
    """
    texts = containers.read(path).found
    if KEY not in texts:
        raise UndustError(f"{path} has no undust recipe{_other_program(texts)}")
    try:
        recipe = json.loads(texts[KEY])
    except (ValueError, RecursionError) as error:
        raise UndustError(f"{path} has a damaged recipe: {error}") from error
    if not isinstance(recipe, dict):
        raise UndustError(f"{path} has a damaged recipe: not an object")
    return cast("dict[str, Any]", recipe)


def read_texts(path: Path) -> dict[str, str]:
    """The texts `undust` and `parameters` of a picture or film, those that it has.

    Raises UndustError as `containers.read` does.
    """
    found = containers.read(path).found
    return {key: found[key] for key in (KEY, A1111_KEY) if key in found}


def _other_program(texts: Mapping[str, str]) -> str:
    """The end of the error for a picture by another program."""
    if A1111_KEY in texts and not texts[A1111_KEY].lstrip().startswith("{"):
        return f"; it has A1111's {A1111_KEY!r}: see undust inspect"
    try:
        found = programs.read(texts)
    except UndustError:
        found = None
    return f"; it has settings of {found.program}: see undust inspect" if found else ""
