"""Stamps as a data set: captions of two languages, pictures on white, the split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stamps import build

from undust.datasets import image_folder
from undust.errors import UndustError

CAPTION = "A red apple!\nde.utf8=Ein roter Apfel!\nko.utf8=빨간 사과!\n"


def add_stamp(folder: Path, name: str, caption: str | None) -> None:
    """A red rectangle of 8×4 pixels in the corner of a transparent picture, with its caption."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGBA", (40, 40))
    picture.paste((255, 0, 0, 255), (0, 0, 8, 4))
    picture.save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, "utf-8")


def test_stamps_have_captions_in_english_and_korean(tmp_path: Path) -> None:
    add_stamp(tmp_path / "stamps", "food/apple.png", CAPTION)
    add_stamp(tmp_path / "stamps", "food/pear.png", "A pear.\n")
    assert build(tmp_path / "stamps", tmp_path / "data", 64) == 2
    apple, pear = image_folder.read(tmp_path / "data")
    assert apple.captions == {"text": "A red apple", "text_ko": "빨간 사과"}
    assert pear.captions == {"text": "A pear"}


def test_the_stamp_fills_the_middle_of_a_white_square(tmp_path: Path) -> None:
    add_stamp(tmp_path / "stamps", "apple.png", CAPTION)
    build(tmp_path / "stamps", tmp_path / "data", 64)
    pixels = np.asarray(Image.open(tmp_path / "data/apple.png"))
    assert pixels.shape == (64, 64, 3)
    rows, columns = np.nonzero((pixels != 255).any(-1))
    # 8×4 pixels are not enlarged: they are in the middle, cropped from their corner.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (30, 33, 28, 35)


def test_cartoons_twins_and_stamps_without_captions_are_left_out(tmp_path: Path) -> None:
    names = ("apple.png", "cartoon/apple.png", "apple_mirror.png", "symbols/a.png")
    for name in names:
        add_stamp(tmp_path / "stamps", name, CAPTION)
    add_stamp(tmp_path / "stamps", "unnamed.png", None)
    assert build(tmp_path / "stamps", tmp_path / "data", 64) == 1


def test_an_absent_folder_of_stamps_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(UndustError, match="tuxpaint-stamps-default"):
        build(tmp_path / "stamps", tmp_path / "data", 64)
