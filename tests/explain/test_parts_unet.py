"""Part 4, the U-Net."""

from __future__ import annotations

import pytest
import torch

from part_setups import PROMPTS, emoji, setup, tiny
from undust.explain.figures import Frames
from undust.explain.parts import unet
from undust.explain.texts import LANGUAGES, Language
from undust.pictures import from_image


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_built_in_model(language: Language):
    found = unet.show(setup(emoji(), language))
    stages, skips, chart = found.figures
    assert isinstance(stages, Frames)
    assert isinstance(skips, Frames)
    assert len(stages.images) == 1 + 5  # two blocks down, the middle, two up
    assert len(skips.images) == 1 + 4 + 1
    assert len({image.tobytes() for image in skips.images}) > 1
    assert len(chart.lines) == 4  # type: ignore[union-attr]
    assert [len(effect.values) for effect in found.effects] == [len(PROMPTS), 3, 3, 3]


def test_another_model():
    assert len(unet.show(setup(tiny())).effects) == 4


def test_estimates_without_noise_are_alike():
    """As the level falls, every cosine with the truth rises to 1, if nothing is cut."""
    found = unet.similarities(setup(emoji()), [])
    assert found.shape == (2, 3, len(unet.LEVELS))
    assert (found[..., 0] > found[..., -1]).all()
    assert (found[..., 0] > 0.95).all()


def test_colours_of_three_directions():
    """Features along one direction have one colour, which differs along it."""
    features = torch.outer(torch.tensor([1.0, 2.0, 0.0, -1.0]), torch.arange(6.0)).reshape(4, 2, 3)
    image = unet.colours(features)
    pixels = from_image(image, image.size).flatten(1).T.double()
    assert pixels[:, 0].unique().numel() == 6
    assert (pixels[:, 1:] - 127.5).abs().max() < 2
