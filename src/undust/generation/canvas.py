"""What a batch is painted over: a picture, what of it is known, and where it ends.

Pictures of any size are painted: a canvas is as large as the network can have it, and what is
finished is cut out of it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from undust.errors import UndustError
from undust.pictures import from_image, grey, levels, transparency

if TYPE_CHECKING:
    from undust.generation.recipe import Recipe

Sides = tuple[int, int, int, int]
"""Pixels at the left, the top, the right and the bottom."""


@dataclass(frozen=True)
class Canvas:
    """A picture to begin from, of H×W pixels.

    pixels: [3, H, W], bytes; unknown: [H, W], 1 where it is painted anew, 0 where it stays, None
    for all of it being only a beginning; frame: what of it is shown at the end.
    """

    pixels: Tensor
    unknown: Tensor | None
    frame: Sides

    @cached_property
    def picture(self) -> Tensor:
        """[1, 3, H, W] in [-1, 1]."""
        return self.pixels[None].float() / 127.5 - 1

    def finished(self, painted: Tensor) -> Tensor:
        """Painted pictures [B, 3, H, W], cut out, what was known put back byte for byte."""
        if self.unknown is not None:
            painted = torch.lerp(
                self.picture.expand_as(painted).to(painted),
                painted,
                self.unknown.to(painted).expand_as(painted),
            )
        return cut(painted, self.frame)

    def unknown_latent(self, size: tuple[int, int]) -> Tensor:
        """[h, w] of a latent: the most that is unknown of any pixel of a place."""
        assert self.unknown is not None
        return F.adaptive_max_pool2d(self.unknown[None], size)[0]


def canvas(recipe: Recipe, factor: int) -> Canvas | None:
    """The canvas of a recipe, or None if it begins from nothing.

    factor: pixels that stand for one of the latent, along a side. A picture, with what it is
    extended by, that is smaller than the recipe's size by less than that is filled up with its own
    edge; any other is resized to fit, and cut. Raises UndustError for a mask of another size than
    the picture's, and as `ImageRef.image` does.
    """
    if recipe.init is None:
        return None
    image = recipe.init.image()
    seen = transparency if recipe.mask_is_hole else grey
    mask = None if recipe.mask is None else seen(recipe.mask.image())
    if mask is not None and mask.size != image.size:
        raise UndustError(
            f"mask: it has {mask.width}x{mask.height} pixels; the picture, "
            f"{image.width}x{image.height}, needs one of its own size"
        )
    left, top, right, bottom = recipe.extend or (0, 0, 0, 0)
    inner = recipe.width - left - right, recipe.height - top - bottom
    if min(inner) < 1:
        raise UndustError(f"extend: {recipe.width}x{recipe.height} leaves no room for the picture")
    fill = inner[0] - image.width, inner[1] - image.height
    if not (0 <= fill[0] < factor and 0 <= fill[1] < factor):
        image = ImageOps.fit(image, inner, Image.Resampling.LANCZOS)
        mask = mask and ImageOps.fit(mask, inner, Image.Resampling.BOX)
        fill = 0, 0
    added = left, right + fill[0], top, bottom + fill[1]
    pixels = F.pad(from_image(image, image.size)[None].float(), added, "replicate")[0].byte()
    unknown = None
    if mask is not None or recipe.extend is not None:
        unknown = torch.zeros(image.height, image.width) if mask is None else levels(mask)
        unknown = F.pad(unknown, added, value=1.0)
    return Canvas(pixels, unknown, (0, 0, fill[0], fill[1]))


def cut(painted: Tensor, frame: Sides) -> Tensor:
    """Pictures [B, 3, H, W] without what stands around the frame."""
    left, top, right, bottom = frame
    return painted[..., top : painted.shape[-2] - bottom, left : painted.shape[-1] - right]


def size_for(image: Image.Image, extend: Sequence[int] | None, factor: int) -> tuple[int, int]:
    """Width and height of the smallest canvas for a picture and what it is extended by."""
    left, top, right, bottom = extend or (0, 0, 0, 0)
    sides = image.width + left + right, image.height + top + bottom
    width, height = (-(-side // factor) * factor for side in sides)
    return width, height
