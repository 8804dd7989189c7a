"""A model that knows what it is asked for: one colour for each prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undust.conditioning.condition import Conditioning

COLOURS = {"red": (1.0, -1.0, -1.0), "grey": (0.0, 0.0, 0.0), "": (-1.0, -1.0, -1.0)}


class ColourPainter:
    """Prompts to colours, and latents that are pixels; a subclass says what it sees under dust."""

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return (3, height, width)

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning(torch.tensor([[COLOURS[prompt]] for prompt in prompts]))

    def decode(self, latents: Tensor) -> Tensor:
        return latents
