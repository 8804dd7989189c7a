"""The hints of a ControlNet's training: edges of the pictures, or maps beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal, Self

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from undust.conditioning.canny import canny_edges
from undust.errors import UndustError
from undust.evaluation.agreement import edge_f_measure
from undust.evaluation.metrics import psnr
from undust.pictures import from_image, to_images
from undust.training.caches import ImageCache
from undust.training.conditions import TrainingCondition
from undust.training.configs import Config
from undust.training.sources import DataSample, TrainingData
from undust.training.views import View

LOW, HIGH = 100.0, 200.0  # as `undust generate --control NETWORK=canny:PICTURE`
CHECKED = 32  # pictures, of which one has to have edges
MEMORY = 1 << 30  # bytes of edges that are kept


class HintConfig(Config):
    """The condition: edges of the picture itself, or a map beside it."""

    kind: Literal["canny", "map"] = Field(
        description="canny: edges of the picture (Canny 1986); map: a picture beside it, in colours"
    )
    column: str | None = Field(
        default=None, min_length=1, description="of kind map: column of the maps, as in [[maps]]"
    )
    low: float | None = Field(
        default=None, ge=0, description="of kind canny: lower threshold; left out: 100"
    )
    high: float | None = Field(
        default=None, ge=0, description="of kind canny: upper threshold; left out: 200"
    )

    @property
    def thresholds(self) -> tuple[float, float]:
        """The two of `canny_edges`."""
        return LOW if self.low is None else self.low, HIGH if self.high is None else self.high

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        if (self.kind == "map") != (self.column is not None):
            raise ValueError("column is needed for kind map, and for no other")
        low, high = self.thresholds
        if self.kind == "map" and (self.low is not None or self.high is not None):
            raise ValueError("low and high are thresholds of kind canny")
        if low > high:
            raise ValueError(f"low is {low:g} and high {high:g}; low has to be at most high")
        return self


class HintCondition(TrainingCondition):
    """The hint of each sample, and the agreement of pictures with it."""

    def __init__(self, config: HintConfig, data: TrainingData) -> None:
        """Raises UndustError if pictures seem to have no edges."""
        self.config, self.views, self._count = config, data.views, len(data.samples)
        self._pictures = ImageCache(data.source, memory=0)
        self._maps = ImageCache(data.source, read=self._map) if config.column else None
        width, height = data.views.square
        self._edges = lru_cache(MEMORY // (width * height))(self._found_edges)
        some = data.train[:: max(1, len(data.train) // CHECKED)][:CHECKED]
        if not self._maps and not any(bool(self._edges(view).any()) for view in self.square(some)):
            low, high = config.thresholds
            raise UndustError(
                f"condition: none of {len(some)} pictures has edges with the thresholds {low:g} "
                f"and {high:g}; lower ones may find some"
            )

    @property
    def digest(self) -> str:
        """A hash of all maps, as they are trained with; "" for edges."""
        if self._maps is None:
            return ""
        found = sha256()
        for sample in range(self._count):
            found.update(self._maps.bytes([self.views.central(sample)]).numpy().data)
        return found.hexdigest()

    def __call__(self, views: Sequence[View]) -> Tensor:
        """Hints [B, 3, H, W] in [0, 1], of the parts of pictures and at their size."""
        if self._maps is not None:
            return self._maps.bytes(views).float() / 255
        edges = torch.stack([self._edges(view) for view in views])
        return edges.float().expand(-1, 3, -1, -1)

    def options(self, sample: int) -> Mapping[str, Any]:  # noqa: ARG002
        """None: a request names a ControlNet's file, and this one has none yet."""
        return {}

    def arguments(self) -> list[str]:
        """None, as `options`."""
        return []

    def shown(self, sample: int) -> list[Image.Image]:
        """The hint."""
        return to_images(2 * self(self.square([sample])) - 1)

    def square(self, samples: Sequence[int]) -> list[View]:
        """Views of pictures at the size that is generated."""
        return [View(sample, self.views.square) for sample in samples]

    @property
    def measure(self) -> tuple[str, str]:
        """Name and unit of the agreement."""
        return ("PSNR", "dB") if self._maps else ("F-measure of edges", "")

    def wanted(self, samples: Sequence[int]) -> Tensor:
        """What the pictures of these samples are compared with: edges [B, 1, H, W], or pictures."""
        if self._maps is None:
            return self(self.square(samples))[:, :1]
        return self._pictures.bytes(self.square(samples))

    def agreement(self, images: Sequence[Image.Image], wanted: Tensor) -> Tensor:
        """The agreement [B] of generated pictures with what is wanted of each.

        The F-measure of their edges against the hints'. A map cannot be taken from a picture
        without a further network: the pictures are compared with the real ones of the maps.
        """
        if self._maps is None:
            found = [canny_edges(image, *self.config.thresholds)[:1] for image in images]
            return edge_f_measure(torch.stack(found), wanted)
        pictures = torch.stack([from_image(image, image.size) for image in images])
        return psnr(pictures, wanted, 255)

    def _map(self, sample: DataSample, view: View) -> Tensor:
        return from_image(sample.beside(str(self.config.column)), view.size, view.place)

    def _found_edges(self, view: View) -> Tensor:
        """The edges of a part of a picture, or of its mirror image: bool [1, H, W]."""
        picture = self._pictures.bytes([view])[0].float() / 255
        return canny_edges(picture, *self.config.thresholds)[:1].bool()
