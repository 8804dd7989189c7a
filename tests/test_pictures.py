"""Pictures to tensors and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from undust.errors import UndustError
from undust.pictures import DATA, from_data, from_image, grey, grid, levels, to_data, to_images


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


def test_a_mask_survives_in_a_text(tmp_path: Path):
    Image.new("RGBA", (8, 6), (255, 255, 255, 51)).save(tmp_path / "mask.png")
    mask = grey(tmp_path / "mask.png")  # on black
    text = to_data(mask, (4, 3))
    assert text.startswith(DATA)
    assert text.isascii()
    assert to_data(from_data(text), (4, 3)) == text
    assert torch.equal(levels(from_data(text)), torch.full((3, 4), 0.2))


def test_pixels_of_a_mask_are_averaged():
    image = Image.new("L", (4, 2))
    image.putdata([255, 255, 0, 0, 255, 0, 0, 0])
    assert levels(from_data(to_data(image, (2, 1))))[0].tolist() == pytest.approx(
        [0.75, 0], abs=0.01
    )


@pytest.mark.parametrize("text", ["", DATA, DATA + "AAAA", "mask.png", DATA + "é"])
def test_a_text_that_is_no_picture(text: str):
    with pytest.raises(UndustError, match="the text is no picture"):
        from_data(text)


def test_a_file_that_is_no_picture(tmp_path: Path):
    (tmp_path / "mask.png").write_text("white")
    for name in ("mask.png", "none.png"):
        with pytest.raises(UndustError, match=r"\.png cannot be read as a picture"):
            grey(tmp_path / name)
