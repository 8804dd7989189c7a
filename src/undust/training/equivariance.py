"""Scale-equivariance of a first stage: the picture of a transformed latent, transformed alike.

Kouzelis et al. 2025 (EQ-VAE): in a share of the steps the decoder has to turn a scaled and rotated
latent into the equally scaled and rotated picture. Such latents are smoother, and diffusion models
learn them sooner.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from undust.diffusion.noise import uniform
from undust.training.data import Batch, RandomStream

SMALLEST = 0.25  # scale


class Transformation(NamedTuple):
    """A scale in (0, 1] and a number of quarter turns, counterclockwise."""

    scale: float = 1.0
    turns: int = 0

    def __call__(self, latents: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [B,C,h,w] and their pictures [B,3,f·h,f·w], both transformed.

        The sides of latents are rounded to whole numbers, and the pictures are f times as large.
        """
        height, width = latents.shape[-2:]
        factor = pictures.shape[-1] // width
        small = max(1, round(height * self.scale)), max(1, round(width * self.scale))
        large = small[0] * factor, small[1] * factor
        return self._of_size(latents, small), self._of_size(pictures, large)

    def _of_size(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if x.shape[-2:] != size:
            # In float32: processors have no other precision for it.
            x = F.interpolate(x.float(), size, mode="bilinear", antialias=True)
        return torch.rot90(x, self.turns, (-2, -1)) if self.turns else x


UNCHANGED = Transformation()


def drawn(batch: Batch, share: float) -> Transformation:
    """The transformation of a step, one for all its samples; share: of the steps that have one.

    Scales are uniform in [0.25, 1), turns in {0, 1, 2, 3}.
    """
    counter = (batch.step, 0, RandomStream.TRANSFORM)
    chance, scale, turns = uniform(batch.seed, counter, (3,)).tolist()
    if chance >= share:
        return UNCHANGED
    return Transformation(SMALLEST + (1 - SMALLEST) * scale, int(4 * turns))
