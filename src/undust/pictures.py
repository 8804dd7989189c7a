"""Pictures to tensors and back, and many pictures to one."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from undust.errors import UndustError

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


def grey(path: Path) -> Image.Image:
    """A picture file in shades of grey, on black. Raises UndustError if it is none."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGBA")
    except OSError as error:
        raise UndustError(f"{path} cannot be read as a picture: {error}") from error
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
