"""The files that a recipe refers to: read, and compared with their hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from undust.errors import UndustError
from undust.formats.known_hashes import known_hash
from undust.formats.lora.file import lora_file
from undust.formats.safetensors_file import tensors_hash
from undust.pictures import read_image
from undust.recipe.files import DIGITS, ImageRef, WeightsRef, is_there
from undust.recipe.inputs import Control, LoRA

W = TypeVar("W", bound=WeightsRef)


def image_of(ref: ImageRef) -> Image.Image:
    """The picture, RGBA. Raises UndustError if it is gone or has changed."""
    if ref.carried is not None:
        return ref.carried
    if not ref.path:
        raise UndustError("the picture was made from one in memory, not from a file")
    image = read_image(Path(ref.path))
    if ref.hash not in ("", _pixels_hash(image)):
        raise UndustError(f"{ref.path} is not the picture any more that it was")
    ref.carrying(image)
    return image


def resolved_image(ref: ImageRef) -> ImageRef:
    """The reference with the picture and its hash; errors as for `image_of`."""
    image = image_of(ref)
    return ImageRef(path=ref.path, hash=_pixels_hash(image)).carrying(image)


def resolved_weights(ref: W) -> W:
    """The reference with the hash of the file; UndustError if that is absent or has changed.

    A LoRA in a folder gets the path of its file, and the hash of its tensors, which picture sites
    know; a ControlNet gets its input picture.
    """
    if isinstance(ref, LoRA):
        ref = ref.model_copy(update={"path": str(lora_file(Path(ref.path)))})
    found: dict[str, Any] = {"hash": _weights_hash(ref)}
    if isinstance(ref, LoRA) and not ref.tensors_hash:
        found["tensors_hash"] = tensors_hash(Path(ref.path))[:12]
    if isinstance(ref, Control):
        found["picture"] = resolved_image(ref.picture)
    return ref.model_copy(update=found)


def _weights_hash(ref: WeightsRef) -> str:
    path = Path(ref.path)
    try:
        inside = sorted(path.glob("*.safetensors"))
        files = inside if path.is_dir() else [path] * path.exists()
    except OSError as error:
        raise UndustError(f"{ref.path} cannot be read: {error.strerror}") from error
    if not files and is_there(path):
        raise UndustError(f"{ref.path}: no weights there (.safetensors)")
    if not files:
        # A weight or word that could not be parsed was taken for a part of the name.
        marked = ref.written and set(":@") & set(path.name)
        form = f"; expected {ref.written}" if marked else ""
        raise UndustError(f"{ref.path} does not exist{form}")
    found = hashlib.sha256("".join(map(known_hash, files)).encode()).hexdigest()[:DIGITS]
    if ref.hash not in ("", found):
        raise UndustError(f"{ref.path} is not the file any more that it was")
    return found


def _pixels_hash(image: Image.Image) -> str:
    size = f"{image.width}x{image.height}".encode()
    return hashlib.sha256(size + image.tobytes()).hexdigest()[:DIGITS]
