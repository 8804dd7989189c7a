"""A model that knows what it is asked for: one colour for each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from undust.latent.conditioner import ConditionInputs
from undust.networks.conditioning import Conditioning

COLOURS = {"red": (1.0, -1.0, -1.0), "grey": (0.0, 0.0, 0.0), "": (-1.0, -1.0, -1.0)}


class ColourPainter:
    """Prompts to colours, and latents that are pixels; a subclass says what it sees under dust."""

    downsampling_factor = 1
    latents = (3, 1, 1.0, 0.0)
    extra_channels = 0
    self_conditioned = False
    low_res_process = None
    max_noise_level = 350
    size = (8, 8)
    name = hash = "painter"
    path, vae, guidance = "", None, 4.0
    precision = "float32"
    num_size_ids = 0

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return (3, height, width)

    @property
    def conditioner(self) -> Self:
        return self

    inputs = ()

    def __call__(self, inputs: ConditionInputs) -> Conditioning:
        return self.condition(inputs.prompts)

    def condition(self, prompts: Sequence[str | None]) -> Conditioning:
        text = torch.tensor([[COLOURS[prompt or ""]] for prompt in prompts])
        return Conditioning(len(text), text)

    def token_count(self, prompt: str | None) -> int:
        return 1

    def with_adapters(
        self,
        loras: Sequence[object] = (),
        embeddings: Sequence[object] = (),
        *,
        token_merging: float = 0.0,
    ) -> Self:
        return self

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def encode(self, pictures: Tensor) -> Tensor:
        return pictures
