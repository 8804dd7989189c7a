"""Pictures to tensors and back, and many pictures to one."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from undust.errors import UndustError
from undust.regular import open_regular

LARGEST = 4096 * 4096  # pixels of a picture
# Of files; other kinds that Pillow knows run programs (PostScript) or hold no pictures that are
# painted over.
KINDS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
DATA = "data:image/png;base64,"  # what a small picture inside a text begins with (RFC 2397)


def from_image(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """An image on white, resized and centre-cropped to (width, height): bytes [3, H, W]."""
    image = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if flat.size != size:
        flat = ImageOps.fit(flat, size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(flat)).permute(2, 0, 1).contiguous()


def to_images(x: Tensor) -> list[Image.Image]:
    """Pictures [B, 3, H, W] in [-1, 1] as 8-bit images; values outside are clipped."""
    bytes_ = (x.float() / 2 + 0.5).clamp(0, 1).mul(255).round().byte()
    return [Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()) for picture in bytes_]


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures [B, 3, H, W] in [-1, 1] at another (width, height), as Pillow's Lanczos does it."""
    bigger = [image.resize(size, Image.Resampling.LANCZOS) for image in to_images(x)]
    return torch.stack([from_image(image, size) for image in bigger]).float() / 127.5 - 1


def grid(images: Sequence[Image.Image], columns: int | None = None, gap: int = 2) -> Image.Image:
    """The images side by side on white, row by row; as square as can be unless told."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    width = max(image.width for image in images) + gap
    height = max(image.height for image in images) + gap
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        sheet.paste(image, (gap + column * width, gap + row * height))
    return sheet


def read_image(path: Path) -> Image.Image:
    """A picture file, as `upright` has it; of one that moves, how it begins.

    Raises UndustError if it is none, too large, or of no kind that is read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of them is an error here
            with open_regular(path) as file, Image.open(file) as image:
                if image.width * image.height > LARGEST:
                    raise UndustError(
                        f"{path} is too large: {image.width}x{image.height}; "
                        "4096x4096 pixels at most"
                    )
                if image.format not in KINDS:
                    raise UndustError(
                        f"{path} is a picture of the kind {image.format}; "
                        f"those that are read are {', '.join(KINDS)}"
                    )
                return upright(image, path)
    except UndustError:
        raise
    except Image.DecompressionBombError as error:
        raise UndustError(f"{path} is too large; 4096x4096 pixels at most") from error
    except UnidentifiedImageError as error:
        kinds = ", ".join(KINDS)
        raise UndustError(f"{path} cannot be read as a picture: it is none of {kinds}") from error
    except OSError as error:
        reason = error.strerror or error
        raise UndustError(f"{path} cannot be read as a picture: {reason}") from error
    except Exception as error:  # IndexError, struct.error, …: each reader trips in its own way
        raise UndustError(f"{path} is a damaged picture: {error}") from error


def upright(image: Image.Image, name: object = "the picture") -> Image.Image:
    """An image as RGBA of 8 bits, turned as its camera noted; of 16 bits the upper ones are kept.

    Raises UndustError for pixels that are no colours but numbers of any size.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would make white of all that is above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F", "La"):
        raise UndustError(f"{name} has no colours but mode {image.mode}; make it RGB or grey")
    # Through RGB, for in one step from the likes of LAB the alpha would be anything.
    return (image if image.has_transparency_data else image.convert("RGB")).convert("RGBA")


def grey(picture: Image.Image) -> Image.Image:
    """A picture in shades of grey, on black."""
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture).convert("L")


def to_data(image: Image.Image, size: tuple[int, int]) -> str:
    """A grey image resized to (width, height), as text: a data URL."""
    file = io.BytesIO()
    (image if image.size == size else image.resize(size, Image.Resampling.BOX)).save(file, "PNG")
    return DATA + base64.b64encode(file.getvalue()).decode()


def from_data(text: str) -> Image.Image:
    """The grey image in a text that `to_data` made. Raises UndustError for another text."""
    try:
        content = base64.b64decode(text.removeprefix(DATA), validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return image.convert("L")
    except (OSError, ValueError) as error:
        raise UndustError("the text is no picture as undust writes them into recipes") from error


def levels(image: Image.Image) -> Tensor:
    """A grey image as [H, W] between 0, black, and 1."""
    return torch.from_numpy(np.array(image)).float() / 255
