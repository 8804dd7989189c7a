"""The interface of feature networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from torch import Tensor, nn
from torch.nn import functional as F

from undust.errors import UndustError

# ImageNet's mean and deviation of red, green and blue in [0, 1], as torchvision's networks take it.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FeatureNetwork(nn.Module, ABC):
    """A trained network that describes pictures [B,3,H,W] in [-1,1]; always in evaluation mode.

    name: for logs and figures; side: pixels of the squares to which `pooled` and `probabilities`
    resize pictures, None for their own size; resizing: its name in figures; classifies: whether it
    has `probabilities`; published: whether FID, KID and inception score are defined by it.
    """

    name: str
    side: int | None
    resizing = "bicubic, antialiased"
    classifies = False
    published = False

    @abstractmethod
    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps [B,C,h,w] of several layers, of pictures at their own size.

        Raises UndustError for pictures that are too small.
        """

    @abstractmethod
    def pooled(self, x: Tensor) -> Tensor:
        """One vector for each picture [B,D]."""

    def probabilities(self, x: Tensor) -> Tensor:  # noqa: ARG002
        """Probabilities of classes [B,K]. Raises UndustError for a network without classes."""
        raise UndustError(f"{self.name} does not classify pictures; EfficientNet-Lite0 does")

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Stays in evaluation mode, also as a part of a module that is trained."""
        return super().train(False)

    def squares(self, x: Tensor) -> Tensor:
        """Pictures resized to `side` in both directions."""
        if self.side is None or tuple(x.shape[-2:]) == (self.side, self.side):
            return x
        size = (self.side, self.side)
        return F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)

    def require_side(self, x: Tensor, least: int) -> None:
        """Raises UndustError for pictures with a side of less than `least` pixels."""
        height, width = x.shape[-2:]
        if min(height, width) < least:
            raise UndustError(
                f"{self.name} needs pictures of at least {least}x{least} pixels, "
                f"not {width}x{height}"
            )
