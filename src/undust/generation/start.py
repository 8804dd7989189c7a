"""The start of a pass: noise, or an init image under noise, of which a part may be kept.

Init images may have any size: they are padded to one that the network takes, and the pictures are
cropped at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from undust.diffusion.noise import BESIDE, normal
from undust.diffusion.process import Process
from undust.errors import UndustError
from undust.latent.model import LatentModel
from undust.latent.references import image_of
from undust.pictures import from_image, grey, levels, transparency
from undust.recipe.recipe import Recipe

Sides = tuple[int, int, int, int]
"""Pixels at the left, the top, the right and the bottom."""


@dataclass(frozen=True)
class InitImage:
    """The picture that image-to-image generation or repainting starts from, H×W pixels.

    pixels: [3, H, W], bytes; repaint_mask: [H, W], 1 where it is repainted, 0 where it is kept, or
    None without a mask; crop: pixels to remove at each side at the end.
    """

    pixels: Tensor
    repaint_mask: Tensor | None
    crop: Sides

    @cached_property
    def picture(self) -> Tensor:
        """[1, 3, H, W] in [-1, 1]."""
        return self.pixels[None].float() / 127.5 - 1

    def finished(self, decoded: Tensor) -> Tensor:
        """Decoded pictures [B, 3, H, W], cropped, with the kept pixels put back byte for byte."""
        if self.repaint_mask is not None:
            decoded = torch.lerp(
                self.picture.expand_as(decoded).to(decoded),
                decoded,
                self.repaint_mask.to(decoded).expand_as(decoded),
            )
        return cropped(decoded, self.crop)

    def latent_mask(self, size: tuple[int, int]) -> Tensor:
        """The mask of a latent [h, w]: the highest value of the pixels of each place."""
        assert self.repaint_mask is not None
        return F.adaptive_max_pool2d(self.repaint_mask[None], size)[0]


def init_image(recipe: Recipe, factor: int) -> InitImage | None:
    """The init image of a recipe, or None if it has none.

    factor: the first stage's downsampling factor. A picture, with its extension, that is smaller
    than the recipe's size by less than that is padded with its own edge; any other is resized to
    cover the size, and cropped. Raises UndustError for a mask of another size than the picture's,
    and as `image_of` does.
    """
    if recipe.init is None:
        return None
    image = image_of(recipe.init)
    seen = transparency if recipe.mask_is_hole else grey
    mask = None if recipe.mask is None else seen(image_of(recipe.mask))
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
    repaint_mask = None
    if mask is not None or recipe.extend is not None:
        repaint_mask = torch.zeros(image.height, image.width) if mask is None else levels(mask)
        repaint_mask = F.pad(repaint_mask, added, value=1.0)
    return InitImage(pixels, repaint_mask, (0, 0, fill[0], fill[1]))


def cropped(pictures: Tensor, sides: Sides) -> Tensor:
    """Pictures [B, 3, H, W] without that many pixels at each side."""
    left, top, right, bottom = sides
    return pictures[..., top : pictures.shape[-2] - bottom, left : pictures.shape[-1] - right]


def size_for(image: Image.Image, extend: Sequence[int] | None, factor: int) -> tuple[int, int]:
    """Width and height of a picture with its extension, rounded up to multiples of the factor."""
    left, top, right, bottom = extend or (0, 0, 0, 0)
    sides = image.width + left + right, image.height + top + bottom
    width, height = (-(-side // factor) * factor for side in sides)
    return width, height


@dataclass(frozen=True)
class StartState:
    """The inputs of a pass beside the conditions.

    init_latent: [1 or B, C, h, w], of the init image; repaint_mask: [h, w], 1 where the latent is
    to be repainted, None if the U-Net takes the mask as input; extra_channels: [1 or B, C, h, w],
    concatenated with the latent; noise_level: that of the extra channels of an upscaler, in time
    steps; init_image: whose kept pixels are put back at the end; crop: pixels to remove at each
    side of the decoded pictures.
    """

    init_latent: Tensor | None = None
    repaint_mask: Tensor | None = None
    extra_channels: Tensor | None = None
    noise_level: int | None = None
    init_image: InitImage | None = None
    crop: Sides = (0, 0, 0, 0)

    def noised(self, noise: Tensor, process: Process, sigma: Tensor, *, all_steps: bool) -> Tensor:
        """The first x [B, C, h, w] of the pass, at level σ, of unit noise [B, C, h, w].

        all_steps: whether the pass takes all steps, so that nothing of the init image is left where
        it is repainted.
        """
        x = process.start(noise, sigma)
        if self.init_latent is None or (all_steps and self.repaint_mask is None):
            return x
        over = self.init_latent + sigma.to(noise) * noise
        if not all_steps or self.repaint_mask is None:
            return over
        return over.lerp(x, self.repaint_mask)

    def finished(self, decoded: Tensor) -> Tensor:
        """Decoded pictures [B, 3, H, W] with the kept pixels of the init image, cropped."""
        if self.init_image is not None:
            decoded = self.init_image.finished(decoded)
        return cropped(decoded, self.crop)


def prepared(
    model: LatentModel, batch: Sequence[Recipe], pictures: Tensor | None = None
) -> StartState:
    """The start of a batch, whose recipes have the same `settings`.

    pictures: [B, 3, H, W] in [-1, 1], the result of a pass before, at most as large as the recipe's
    size, up to which they are padded with their own edge. Raises UndustError for a recipe that
    lacks a picture that the model needs, or has one that it cannot use.
    """
    recipe = batch[0]
    if model.low_res_process is not None:
        return _upscaling(model, model.low_res_process, batch)
    if recipe.noise_level is not None:
        raise UndustError(f"noise level: {recipe.model} is no model that makes pictures larger")
    if pictures is not None:
        crop = 0, 0, recipe.width - pictures.shape[-1], recipe.height - pictures.shape[-2]
        latent = model.encode(F.pad(pictures, (0, crop[2], 0, crop[3]), "replicate"))
        return StartState(latent, extra_channels=_repaint_channels(model, None, recipe), crop=crop)
    image = init_image(recipe, model.downsampling_factor)
    extra_channels = _repaint_channels(model, image, recipe)
    if image is None:
        return StartState(extra_channels=extra_channels)
    latent = model.encode(image.picture)
    mask = None
    if image.repaint_mask is not None and (extra_channels is None or recipe.refiner is not None):
        mask = image.latent_mask((latent.shape[-2], latent.shape[-1]))
    return StartState(latent, mask, extra_channels, init_image=image)


def _repaint_channels(model: LatentModel, image: InitImage | None, recipe: Recipe) -> Tensor | None:
    """The extra input channels of a repainting model, [1, 1 + C, h, w]; None for other models."""
    if model.extra_channels == 0:
        return None
    channels = model.latent_shape(recipe.width, recipe.height)[0]
    if model.extra_channels != 1 + channels:
        raise UndustError(
            f"the U-Net wants {model.extra_channels} channels beside the latent's {channels}"
        )
    if image is None or image.repaint_mask is None:
        size = recipe.height, recipe.width
        return repaint_channels(model, torch.zeros(1, 3, *size), torch.ones(1, 1, *size))
    hidden = (image.repaint_mask >= 0.5).float()
    return repaint_channels(model, image.picture, hidden[None, None])


def repaint_channels(model: LatentModel, pictures: Tensor, hidden: Tensor) -> Tensor:
    """The extra input channels of a repainting model, [B, 1 + C, h, w].

    The mask, and the latents of the pictures [B, 3, H, W] with grey in the place of what is hidden,
    [B, 1, H, W] of 0 and 1 (Rombach et al. 2022, section 4.5; the order is that of the published
    models).
    """
    size = model.latent_shape(pictures.shape[-1], pictures.shape[-2])[1:]
    mask = F.interpolate(hidden, size, mode="nearest")
    return torch.cat([mask, model.encode(pictures * (1 - hidden))], 1)


def noised(process: Process, small: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """The input of an upscaler: small pictures [B, 3, h, w] under noise at time steps [B]."""
    alpha, deviation = (
        part.float().reshape(-1, 1, 1, 1) for part in (process.alpha(level), process.std(level))
    )
    return alpha * small + deviation * noise


def _upscaling(model: LatentModel, process: Process, batch: Sequence[Recipe]) -> StartState:
    """The init image under a little noise of its own, as the extra channels of an upscaler."""
    recipe = batch[0]
    if recipe.init is None or recipe.noise_level is None:
        raise UndustError(
            f"{recipe.model} only makes pictures larger, with generate: give it one to begin from "
            "(init)"
        )
    _, height, width = model.latent_shape(recipe.width, recipe.height)
    small = from_image(image_of(recipe.init), (width, height)).float() / 127.5 - 1
    if not process.time_range[0] <= recipe.noise_level <= process.time_range[1]:
        raise UndustError(f"noise level: {recipe.noise_level} is outside {process.time_range}")
    noise = torch.stack([normal(each.seed, (BESIDE, 0, 0), small.shape) for each in batch])
    level = torch.full((len(batch),), recipe.noise_level)
    return StartState(
        extra_channels=noised(process, small, level, noise), noise_level=recipe.noise_level
    )
