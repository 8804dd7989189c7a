"""PNG pictures that carry the recipe they were made by.

Two text chunks: `undust`, the recipe as JSON, from which the picture can be made again; and
`parameters`, the text that Stable Diffusion web UIs and picture sites read.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import Image, PngImagePlugin

from undust.errors import UndustError
from undust.formats.a1111 import a1111_parameters
from undust.formats.files import atomic
from undust.regular import open_regular

KEY, A1111_KEY = "undust", "parameters"
LIMIT = 2**20  # bytes of one text, also of a compressed one when unpacked
OTHERS = {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl"}
SIGNATURE = b"\x89PNG\r\n\x1a\n"


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
    """The recipe in a picture written by `write_picture`, not yet checked for sense.

    Raises UndustError for a file that is absent, no PNG, cut short or without a recipe.
    """
    texts = read_texts(path)
    if KEY not in texts:
        others = f"; it carries A1111's {A1111_KEY!r}: undust inspect" * (A1111_KEY in texts)
        raise UndustError(f"{path} carries no undust recipe{others}")
    try:
        recipe = json.loads(texts[KEY])
    except (ValueError, RecursionError) as error:
        raise UndustError(f"{path} carries a damaged recipe: {error}") from error
    if not isinstance(recipe, dict):
        raise UndustError(f"{path} carries a damaged recipe: not an object")
    return cast("dict[str, Any]", recipe)


def read_texts(path: Path) -> dict[str, str]:
    """The texts `undust` and `parameters` of a PNG, those that it has.

    Raises UndustError for a file that is absent, no PNG, damaged or cut short, and for texts of
    more than a MiB.
    """
    try:
        with open_regular(path) as file:
            if file.read(8) != SIGNATURE:
                raise UndustError(f"{path} is not a PNG picture")
            return dict(_texts(file, os.fstat(file.fileno()).st_size))
    except OSError as error:
        raise UndustError(f"{path} cannot be read: {error.strerror}") from error
    except _DamageError as damage:
        raise UndustError(f"{path} is damaged: {damage}") from damage


class _DamageError(Exception):
    """What is wrong inside a file whose name the caller knows."""


def _texts(file: BinaryIO, size: int) -> Iterator[tuple[str, str]]:
    """Walks through the chunks (PNG specification, third edition, 5.3 and 11.3.3)."""
    kind = b""
    while kind != b"IEND":
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or length + 4 > size - file.tell():
            raise _DamageError("it is cut short")
        end = file.tell() + length + 4
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            key = file.read(min(length, 80)).partition(b"\0")[0].decode("latin-1")
            if key in (KEY, A1111_KEY):
                if length > LIMIT + 80:
                    raise _DamageError(f"its text {key!r} has more than {LIMIT:,} bytes")
                file.seek(end - length - 4)
                content = file.read(length)
                if zlib.crc32(kind + content) != int.from_bytes(file.read(4), "big"):
                    raise _DamageError(f"its text {key!r} does not fit its checksum")
                yield key, _decode(kind, content[len(key) + 1 :])
        file.seek(end)


def _decode(kind: bytes, rest: bytes) -> str:
    """A text chunk after its keyword, unpacked as far as the limit."""
    packed, encoding = kind == b"zTXt", "latin-1"
    if kind == b"zTXt":
        rest = rest[1:]  # the compression method; there is only one
    elif kind == b"iTXt":
        packed, encoding = rest[:1] == b"\1", "utf-8"
        # After the flag and the method: language, translated keyword, text.
        rest = (rest[2:].split(b"\0", 2) + 2 * [b""])[2]
    try:
        text = zlib.decompressobj().decompress(rest, LIMIT + 1) if packed else rest
        if len(text) > LIMIT:
            raise _DamageError(f"a text in it has more than {LIMIT:,} bytes")
        return text.decode(encoding)
    except (zlib.error, UnicodeDecodeError) as error:
        raise _DamageError(f"a text in it cannot be read: {error}") from error
