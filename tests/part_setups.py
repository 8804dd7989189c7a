"""Setups for tests of the parts of an explanation: few seeds and steps, so that they are fast."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

import undust
from undust.explain.setup import Setup
from undust.explain.texts import Language, Translation
from undust.pictures import from_image
from undust.pipeline import LatentDiffusion
from variants import build

PROMPTS = ("smiling face with sunglasses", "red heart")


@cache
def emoji() -> LatentDiffusion:
    return undust.load("emoji", engine="torch")


@cache
def tiny() -> LatentDiffusion:
    """As Stable Diffusion 1, with random weights."""
    return build("sd1")


def setup(model: LatentDiffusion, language: Language = "en") -> Setup:
    """Two seeds, two steps, and the model's own pictures as the real ones."""
    drawn = _drawn(model) if model in (emoji(), tiny()) else _drawn.__wrapped__(model)
    return Setup(model, PROMPTS, (0, 1), drawn.clone(), Translation(language), 2, 4.0)


@cache
def _drawn(model: LatentDiffusion) -> Tensor:
    drawn = model.generate([*PROMPTS, "bird"], steps=2, seed=5)
    pixels = torch.stack([from_image(each.image, drawn[0].image.size) for each in drawn])
    return pixels.float() / 127.5 - 1
