"""Maps that are concatenated with the noisy latents: segmentation, depth, pictures.

Rombach et al. 2022, section 3.3 and appendix D: a spatial condition is resized to the size of the
latents and given to the denoiser as further input channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from undust.errors import UndustError
from undust.pictures import from_image

MAX_CLASSES = 256  # of a segmentation; each is an input channel
LISTED = 4  # colours in an error
Colour = Annotated[str, Field(pattern="^#[0-9a-f]{6}$")]


class MapKind(BaseModel):
    """A kind of map.

    kind: "segmentation", in which each colour is a class; "depth", grey; "picture", in colours.
    colours: of the classes of a segmentation, such as "#00ff00". guided: whether guidance leads
    away from the absence of the map, of a model that was trained without it too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["segmentation", "depth", "picture"]
    colours: tuple[Colour, ...] = Field((), max_length=MAX_CLASSES)
    guided: bool = False

    @model_validator(mode="after")
    def _has_colours(self) -> MapKind:
        if (self.kind == "segmentation") != bool(self.colours):
            raise ValueError("colours are the classes of a segmentation, and of no other map")
        return self

    @property
    def channels(self) -> int:
        """Input channels of the denoiser: one for each class, for depth, and for each colour."""
        return {"segmentation": len(self.colours), "depth": 1, "picture": 3}[self.kind]

    def read(self, image: Image.Image, size: tuple[int, int], place: float = 0.5) -> Tensor:
        """A map as bytes [1 or 3, H, W], resized and cropped to (width, height) as pictures are.

        place: of the crop, as for `from_image`.

        Of a segmentation the number of each pixel's class. Raises UndustError for a colour of no
        class.
        """
        if self.kind == "segmentation":
            codes = _codes(image, size, place)
            known = np.array([int(colour[1:], 16) for colour in self.colours])
            order = known.argsort()
            found = order[np.searchsorted(known[order], codes).clip(max=len(known) - 1)]
            wrong = np.unique(codes[known[found] != codes])
            if len(wrong):
                named = ", ".join(map(_colour, wrong[:LISTED].tolist()))
                classes = ", ".join(self.colours[:LISTED])
                raise UndustError(
                    f"the segmentation has the colour {named}, which is no class; the "
                    f"{len(self.colours)} classes are {classes}"
                    + (", …" if len(self.colours) > LISTED else "")
                )
            return torch.from_numpy(found.astype(np.uint8))[None]
        pixels = from_image(image, size, place)
        return pixels if self.kind == "picture" else pixels.float().mean(0, keepdim=True).byte()

    def encode(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Bytes [B, 1 or 3, H, W] → input channels [B, channels, h, w], size (h, w).

        The share of each class in a latent pixel, 0 to 1, or the mean depth or colour, −1 to 1.
        """
        if self.kind == "segmentation":
            classes = torch.arange(len(self.colours), device=pixels.device)[:, None, None]
            return F.adaptive_avg_pool2d((pixels == classes).float(), size)
        return F.adaptive_avg_pool2d(pixels.float() / 127.5 - 1, size)


def colours_of(images: Iterable[tuple[Image.Image, tuple[int, int], float]]) -> tuple[str, ...]:
    """The colours of segmentations, in order. Raises UndustError for over 256.

    images: each with the size and the place of its crop.
    """
    seen = np.zeros(0, np.int64)
    for image, size, place in images:
        seen = np.union1d(seen, _codes(image, size, place))
        if len(seen) > MAX_CLASSES:
            raise UndustError(
                f"the segmentations have over {MAX_CLASSES} colours, and each is a class: their "
                "edges may be smoothed (JPEG, antialiasing); PNG without smoothing is needed"
            )
    return tuple(map(_colour, seen.tolist()))


def _codes(image: Image.Image, size: tuple[int, int], place: float) -> np.ndarray:
    """The colours of a segmentation at (width, height), as numbers [H, W]; none is mixed."""
    nearest = Image.Resampling.NEAREST
    flat = ImageOps.fit(image.convert("RGB"), size, nearest, centering=(place, place))
    return np.array(flat).astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def _colour(code: int) -> str:
    return f"#{code:06x}"
