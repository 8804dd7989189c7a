"""Pictures to tensors and back."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from undust.pictures import from_image, grid, to_images


def test_bytes_survive_the_way_there_and_back():
    x = torch.randint(0, 256, (2, 3, 5, 7), generator=torch.Generator().manual_seed(0))
    images = to_images(x / 127.5 - 1)
    assert [image.size for image in images] == [(7, 5)] * 2
    assert torch.equal(torch.stack([from_image(image, (7, 5)) for image in images]), x.byte())


def test_values_are_rounded_and_clipped():
    x = torch.tensor([-3.0, -1.0, -0.999, 0.0, 0.999, 1.0, 9.0]).expand(1, 3, 1, 7)
    (image,) = to_images(x)
    assert from_image(image, (7, 1))[0, 0].tolist() == [0, 0, 0, 128, 255, 255, 255]


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),  # on white
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("L", 7, (7, 7, 7)),
        ("1", 0, (0, 0, 0)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_images_of_any_mode(mode: str, colour: int | tuple[int, ...], seen: tuple[int, ...]):
    x = from_image(Image.new(mode, (4, 4), colour), (4, 4))
    assert x[:, 2, 2].tolist() == list(seen)


def test_images_of_another_shape_are_cropped_at_the_sides():
    """A wide picture of three thirds: the middle one is left."""
    image = Image.new("RGB", (12, 4), "red")
    image.paste("blue", (4, 0, 8, 4))
    assert from_image(image, (4, 4))[:, 1:3, 1:3].flatten(1).unique(dim=1).tolist() == [
        [0],
        [0],
        [255],
    ]
    assert from_image(image, (6, 2)).shape == (3, 2, 6)


def test_a_grid_is_filled_row_by_row():
    images = [Image.new("RGB", (2, 3), colour) for colour in ("red", "lime", "blue")]
    sheet = grid(images, gap=1)
    assert sheet.size == (2 * 3 + 1, 2 * 4 + 1)
    seen = [sheet.getpixel(place) for place in ((1, 1), (4, 1), (1, 5), (4, 5), (0, 0), (3, 2))]
    white = (255, 255, 255)
    assert seen == [(255, 0, 0), (0, 255, 0), (0, 0, 255), white, white, white]
    assert grid(images, columns=3, gap=0).size == (6, 3)
