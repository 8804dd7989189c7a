"""Conditions made from the picture itself: its reduced size, and what a mask leaves of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from undust.diffusion.process import DISCRETE, Process
from undust.errors import UndustError
from undust.generation.start import noised, repaint_channels
from undust.latent.model import LatentModel
from undust.pictures import to_images
from undust.training.caches import ImageCache
from undust.training.conditions import TrainingCondition
from undust.training.configs import Config
from undust.training.data import Batch, RandomStream
from undust.training.sources import TrainingData
from undust.training.views import View

SHAPES = 4  # of a random mask, at most
WHOLE = 0.25  # share of masks that hide the whole picture


def low_resolution_process() -> Process:
    """The noise process of the low-resolution input, as that of the published x4 upscaler."""
    return DISCRETE["scaled-linear"](1000, 1e-4, 0.02)


class LowResolutionConfig(Config):
    """Super-resolution: the picture at the latents' size is the condition.

    With noise augmentation (Ho et al. 2022, section 4): it is under noise of a random level, which
    the network is told, so that errors of a small picture are not copied. The first stage's factor
    is the enlargement.
    """

    max_noise_level: int = Field(
        default=350, ge=0, le=999, description="most noise on the small picture, in time steps"
    )


class LowResolutionCondition(TrainingCondition):
    """The picture at the size of the latents, under noise of a random level."""

    def __init__(self, config: LowResolutionConfig, data: TrainingData, model: LatentModel) -> None:
        """Raises UndustError for a model of pixels."""
        factor = model.downsampling_factor
        if factor == 1:
            raise UndustError(
                'low_resolution needs a first stage, whose factor is the enlargement; "pixels" has '
                "none"
            )
        self.config, self._process = config, low_resolution_process()
        self._small, self._views = ImageCache(data.source), data.views
        self._factor = factor

    def channels(self, batch: Batch) -> Tensor:
        """The small pictures [B, 3, h, w] under noise."""
        small = self._small([view.smaller(self._factor) for view in self._views.drawn(batch)])
        noise = batch.normal(RandomStream.LOW_RESOLUTION_NOISE, small.shape[1:])
        return noised(self._process, small, self.label(batch), noise)

    def label(self, batch: Batch) -> Tensor:
        """The noise levels [B], in time steps."""
        levels = batch.uniform(RandomStream.LOW_RESOLUTION)[:, 0] * (
            self.config.max_noise_level + 1
        )
        return levels.long()

    def options(self, sample: int) -> Mapping[str, Any]:
        """The small picture, under little noise."""
        level = min(20, self.config.max_noise_level)
        return {"init": self._image(sample), "noise_level": level}

    def arguments(self) -> list[str]:
        """A small picture's file."""
        return ["--init", "small.png"]

    def shown(self, sample: int) -> list[Image.Image]:
        """The small picture, its pixels enlarged."""
        small = self._image(sample)
        size = (small.width * self._factor, small.height * self._factor)
        return [small.resize(size, Image.Resampling.NEAREST)]

    def _image(self, sample: int) -> Image.Image:
        view = View(sample, self._views.square).smaller(self._factor)
        return to_images(self._small([view]))[0]


class InpaintingConfig(Config):
    """Inpainting: a random mask, and the picture without what it hides (Rombach et al., 4.5)."""

    whole: float = Field(
        default=WHOLE, ge=0, le=1, description="share of samples with all of the picture hidden"
    )


class InpaintingCondition(TrainingCondition):
    """A random mask at the latents' size, and the latents of the masked picture."""

    def __init__(self, config: InpaintingConfig, data: TrainingData, model: LatentModel) -> None:
        self.config, self._model, self._views = config, model, data.views
        self._pictures = ImageCache(data.source)

    @torch.no_grad()
    def channels(self, batch: Batch) -> Tensor:
        """[B, 1 + C, h, w], as `repaint_channels`."""
        numbers = batch.uniform(RandomStream.MASK, 1 + 6 * SHAPES)
        views = self._views.drawn(batch)
        hidden = random_masks(numbers[:, 1:], views[0].size)
        hidden[numbers[:, 0] < self.config.whole] = 1
        return repaint_channels(self._model, self._pictures(views), hidden)

    def options(self, sample: int) -> Mapping[str, Any]:
        """The picture, with its middle hidden."""
        image, mask = self._image(sample), Image.new("L", self._views.square)
        edge = mask.width // 4
        mask.paste(255, (edge, edge, mask.width - edge, mask.height - edge))
        return {"init": image, "mask": mask}

    def arguments(self) -> list[str]:
        """The files of a picture and a mask."""
        return ["--init", "picture.png", "--mask", "mask.png"]

    def shown(self, sample: int) -> list[Image.Image]:
        """The picture with grey in place of its middle."""
        options = self.options(sample)
        grey = Image.new("RGB", self._views.square, "grey")
        return [Image.composite(grey, options["init"], options["mask"])]

    def _image(self, sample: int) -> Image.Image:
        return to_images(self._pictures([View(sample, self._views.square)]))[0]


def random_masks(numbers: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [B, 1, H, W], 1 where hidden: rectangles and thick strokes.

    After the wide masks of Suvorov et al. 2022 (LaMa). numbers: [B, 6·k] in (0, 1) for up to k
    shapes: two points, the width, and the kind; the first is always there. size: (W, H), of which
    the shapes are stretched to the ratio.
    """
    x, y = ((torch.arange(side) + 0.5) / side for side in size)
    x, y = x[None, :], y[:, None]
    masks = torch.zeros(len(numbers), 1, *size[::-1])
    shapes = numbers.float().unflatten(1, (-1, 6))
    for row, own in enumerate(shapes):
        for which, (x0, y0, x1, y1, width, kind) in enumerate(own.tolist()):
            if which and kind > 0.75:  # one shape fewer
                continue
            if kind < 0.4:
                inside = (x - x0).abs() < 0.1 + 0.3 * width
                inside = inside & ((y - y0).abs() < 0.1 + 0.3 * y1)
            else:
                dx, dy = x1 - x0, y1 - y0
                along = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
                inside = (x - x0 - along * dx).square() + (y - y0 - along * dy).square()
                inside = inside < (0.04 + 0.1 * width) ** 2
            masks[row, 0] = torch.maximum(masks[row, 0], inside.float())
    return masks
