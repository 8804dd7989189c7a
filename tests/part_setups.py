"""Setups for tests of the parts of an explanation: few seeds and steps, so that they are fast."""

from __future__ import annotations

from functools import cache

import torch

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
    drawn = model.generate([*PROMPTS, "bird"], steps=2, seed=5)
    size = drawn[0].image.size
    pixels = torch.stack([from_image(each.image, size) for each in drawn])
    pictures = pixels.float() / 127.5 - 1
    return Setup(model, PROMPTS, (0, 1), pictures, Translation(language), 2, 4.0)
