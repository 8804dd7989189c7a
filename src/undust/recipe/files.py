"""References to files: init images and masks, weights.

A recipe has the path of a file and the hash of its contents, not the file; nothing is read here.
"""

from __future__ import annotations

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
from undust.pictures import upright
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
    """A picture's file, and the hash of its pixels; path is "" for one that was never a file.

    It may carry the picture itself, which is no part of the recipe.
    """

    path: PathText = Field(max_length=4096)
    hash: str = Field(default="", max_length=DIGITS)
    _image: Image.Image | None = PrivateAttr(None)

    @classmethod
    def of(cls, given: object) -> Self:
        """From a path, an image or itself; nothing is read. Raises UndustError for others."""
        if isinstance(given, cls):
            return given
        if isinstance(given, Image.Image):
            return cls(path="").carrying(upright(given))
        if not isinstance(path := _as_text(given), str):
            raise UndustError(
                f"picture: {type(given).__name__} is neither a file's path nor a PIL image; "
                "PIL.Image.fromarray makes one of an array of bytes"
            )
        try:
            return cls(path=path)
        except ValidationError as error:
            raise UndustError(f"picture: {reason(error)}") from None

    # Whether the picture has been read yet makes no difference.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageRef) and (self.path, self.hash) == (other.path, other.hash)

    def __hash__(self) -> int:
        return hash((self.path, self.hash))

    @property
    def carried(self) -> Image.Image | None:
        """The picture, if it is known."""
        return self._image

    def carrying(self, image: Image.Image) -> Self:
        """Itself, with the picture."""
        self._image = image
        return self


class WeightsRef(Frozen):
    """A file of weights, and the hash of its bytes."""

    written: ClassVar[str] = ""  # its form as text, where it has more than a path
    path: PathText = Field(min_length=1, max_length=4096)
    hash: str = Field(default="", max_length=DIGITS)


def beside(fields: object, folder: Path) -> Any:
    """A recipe's plain values, with files that are no longer at their paths searched in a folder.

    By name alone: the contents of a file are compared with the hash when it is read.
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
