"""Files that a recipe names: pictures to begin from, weights to put in.

A recipe holds where a file was and the hash of what was in it, not the file. Whoever paints from
the recipe again needs the file, and is told if it is not the same any more.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, cast

from PIL import Image
from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
)

from undust.errors import UndustError
from undust.formats.files import expanded
from undust.formats.safetensors_file import content_hash
from undust.pictures import read_image, upright
from undust.recipe.plain import Frozen, reason

DIGITS = 16  # of a hash, hexadecimal
PATHS = {"path", "model"}  # what a recipe calls them


def _as_text(given: object) -> object:
    if not isinstance(given, str | os.PathLike):
        return given
    text = os.fsdecode(cast("str | os.PathLike[str]", given))
    return str(expanded(text)) if text.startswith("~") else text


PathText = Annotated[str, BeforeValidator(_as_text)]


class ImageRef(Frozen):
    """A picture's file, and the hash of its pixels; path is "" for one that was never a file."""

    path: PathText = Field(max_length=4096)
    hash: str = Field(default="", max_length=DIGITS)
    _image: Image.Image | None = PrivateAttr(None)

    @classmethod
    def of(cls, given: object) -> Self:
        """A file's path, an image or itself, and what is in it. Raises UndustError for others."""
        if isinstance(given, cls):
            path, image = given.path, given.image()
        elif isinstance(given, Image.Image):
            path, image = "", upright(given)
        elif isinstance(path := _as_text(given), str):
            image = read_image(Path(path))
        else:
            raise UndustError(
                f"picture: {type(given).__name__} is neither a file's path nor a PIL image; "
                "PIL.Image.fromarray makes one of an array of bytes"
            )
        try:
            made = cls(path=path, hash=_pixels(image))
        except ValidationError as error:
            raise UndustError(f"picture: {reason(error)}") from None
        made._image = image
        return made

    # Whether the picture has been read yet makes no difference.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageRef) and self._told() == other._told()

    def __hash__(self) -> int:
        return hash(self._told())

    def _told(self) -> tuple[str, str]:
        return self.path, self.hash

    def image(self) -> Image.Image:
        """The picture, RGBA. Raises UndustError if it is not there any more, or is another."""
        if self._image is None:
            if not self.path:
                raise UndustError("the picture was painted from one in memory, not from a file")
            image = read_image(Path(self.path))
            if self.hash not in ("", _pixels(image)):
                raise UndustError(f"{self.path} is not the picture any more that it was")
            self._image = image
        return self._image


class WeightsRef(Frozen):
    """A file of weights, and the hash of its bytes."""

    written: ClassVar[str] = ""  # how people write it, where it has more than a path
    path: PathText = Field(min_length=1, max_length=4096)
    hash: str = Field(default="", max_length=DIGITS)

    def resolve(self) -> Self:
        """The same with its hash. Raises UndustError for a file that is absent or has changed."""
        path = Path(self.path)
        try:
            inside = sorted(path.glob("*.safetensors"))
            files = inside if path.is_dir() else [path] * path.exists()
        except OSError as error:
            raise UndustError(f"{self.path} cannot be read: {error.strerror}") from error
        if not files and is_there(path):
            raise UndustError(f"{self.path}: no weights there (.safetensors)")
        if not files:
            # What follows a mark and cannot be read has been taken for a part of the name.
            marked = self.written and set(":@") & set(path.name)
            form = f"; it is written {self.written}" if marked else ""
            raise UndustError(f"{self.path} does not exist{form}")
        found = hashlib.sha256("".join(map(content_hash, files)).encode()).hexdigest()[:DIGITS]
        if self.hash not in ("", found):
            raise UndustError(f"{self.path} is not the file any more that it was")
        return self.model_copy(update={"hash": found})


def beside(fields: object, folder: Path) -> Any:
    """A recipe's plain values, with the files that are not where they were looked for in a folder.

    Only names are looked at: what is in a file is held against its hash when it is read.
    """
    match fields:
        case dict():
            known = cast("dict[str, Any]", fields)
            return {
                name: _near(value, folder) if name in PATHS else beside(value, folder)
                for name, value in known.items()
            }
        case list():
            return [beside(value, folder) for value in cast("list[object]", fields)]
        case _:
            return fields


def _near(path: object, folder: Path) -> object:
    if not isinstance(path, str) or not path or is_there(path):
        return path
    near = folder / Path(path).name
    return str(near) if is_there(near) else path


def is_there(path: Path | str) -> bool:
    """Whether there is a file or folder of that name."""
    try:
        return expanded(path).exists()
    except (OSError, ValueError):  # a name too long, or with a null character
        return False


def _pixels(image: Image.Image) -> str:
    told = f"{image.width}x{image.height}".encode()
    return hashlib.sha256(told + image.tobytes()).hexdigest()[:DIGITS]
