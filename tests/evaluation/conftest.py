from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from undust.pictures import to_images

Draw = Callable[[int], list[Image.Image]]


@pytest.fixture
def draw() -> Draw:
    """The first few of endless pictures, 32 px: eight coloured squares each, anywhere."""

    def pictures(count: int) -> list[Image.Image]:
        chance = torch.Generator().manual_seed(0)
        x = torch.ones(count, 3, 32, 32)
        for picture in x:
            for _ in range(8):
                top, left = torch.randint(0, 24, (2,), generator=chance).tolist()
                colour = 2 * torch.rand(3, 1, 1, generator=chance) - 1
                picture[:, top : top + 8, left : left + 8] = colour
        return to_images(x)

    return pictures


@pytest.fixture
def drawn(draw: Draw, tmp_path: Path) -> list[Path]:
    """Sixty such pictures as files."""
    paths: list[Path] = []
    for number, picture in enumerate(draw(60)):
        paths.append(tmp_path / f"{number:02}.png")
        picture.save(paths[-1])
    return paths
