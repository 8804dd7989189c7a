"""Files that a recipe names: pictures to begin from, weights to put in.

A recipe holds where a file was and the hash of what was in it, not the file. Whoever paints from
the recipe again needs the file, and is told if it is not the same any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sized
from pathlib import Path
from typing import Any, Self, cast

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from undust.errors import UndustError, few, shown
from undust.formats.safetensors_file import content_hash
from undust.generation.guides import reason
from undust.pictures import read_image, upright

DIGITS = 16  # of a hash, hexadecimal


class Frozen(BaseModel):
    """Plain values; an unknown one is refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, fields: object) -> object:
        if isinstance(fields, dict):
            known = cast("dict[object, object]", fields)
            few(cls.__name__, known)
            for name, value in known.items():
                if isinstance(value, list | tuple):
                    few(f"{cls.__name__}: {shown(name)}", cast("Sized", value))
        return fields


class GivenPicture(Frozen):
    """A picture's file, and the hash of its pixels; path is "" for one that was never a file."""

    path: str = Field(max_length=4096)
    hash: str = Field(default="", max_length=DIGITS)
    _image: Image.Image | None = PrivateAttr(None)

    @classmethod
    def of(cls, given: Image.Image | Path | str | Self) -> Self:
        """A picture given now, and what is in it. Raises UndustError for a file that is none."""
        if isinstance(given, cls):
            path, image = given.path, given.image()
        elif isinstance(given, Image.Image):
            path, image = "", upright(given)
        else:
            path, image = str(given), read_image(Path(str(given)))
        try:
            made = cls(path=path, hash=_pixels(image))
        except ValidationError as error:
            raise UndustError(f"picture: {reason(error)}") from None
        made._image = image
        return made

    # Whether the picture has been read yet makes no difference.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, GivenPicture) and self._told() == other._told()

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


class GivenWeights(Frozen):
    """A file of weights, and the hash of its bytes."""

    path: str = Field(min_length=1, max_length=4096)
    hash: str = Field(default="", max_length=DIGITS)

    def settle(self) -> Self:
        """The same with its hash. Raises UndustError for a file that is absent or has changed."""
        path = Path(self.path)
        try:
            files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        except OSError as error:
            raise UndustError(f"{self.path} cannot be read: {error.strerror}") from error
        if not files:
            raise UndustError(f"{self.path}: no weights there (.safetensors)")
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
            path = known.get("path")
            found = {name: beside(value, folder) for name, value in known.items()}
            if isinstance(path, str) and path and not _is_there(Path(path)):
                near = folder / Path(path).name
                return {**found, "path": str(near)} if _is_there(near) else found
            return found
        case list():
            return [beside(value, folder) for value in cast("list[object]", fields)]
        case _:
            return fields


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a null character
        return False


def _pixels(image: Image.Image) -> str:
    told = f"{image.width}x{image.height}".encode()
    return hashlib.sha256(told + image.tobytes()).hexdigest()[:DIGITS]
