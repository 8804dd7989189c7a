"""The images of a data source in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from undust.errors import UndustError
from undust.training.caches import ImageCache
from undust.training.configs import DataConfig
from undust.training.sources import ImageFolderSource
from undust.training.views import View


def source(folder: Path) -> ImageFolderSource:
    return ImageFolderSource(DataConfig(folder=folder, size=16))


def views(size: int, *samples: int) -> list[View]:
    return [View(sample, (size, size)) for sample in samples]


def test_pictures_are_read_to_minus_one_to_one(tmp_path: Path):
    colours = {"black": -1.0, "white": 1.0, (51, 51, 51): -0.6}
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, colour in zip(paths, colours, strict=True):
        Image.new("RGB", (8, 8), colour).save(path)
    x = ImageCache(source(tmp_path))(views(4, 2, 0, 1))
    assert (x.shape, x.dtype) == ((3, 3, 4, 4), torch.float32)
    expected = torch.tensor([-0.6, -1.0, 1.0])[:, None, None, None].expand_as(x)
    torch.testing.assert_close(x, expected)


def test_pictures_are_the_same_whether_kept_or_not(data: Path):
    kept, read = ImageCache(source(data)), ImageCache(source(data), memory=0)
    for _ in range(2):
        assert torch.equal(kept(views(16, 3, 1, 3)), read(views(16, 3, 1, 3)))
    assert len(kept) == 12


def test_a_picture_that_is_in_memory_is_not_read_again(data: Path, tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes((data / "00.png").read_bytes())
    pictures = ImageCache(source(tmp_path))
    first = pictures(views(16, 0))
    path.unlink()
    assert torch.equal(pictures(views(16, 0)), first)


def test_a_broken_picture_is_named(tmp_path: Path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "broken.png")
    pictures = ImageCache(source(tmp_path))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UndustError, match=r"broken\.png"):
        pictures(views(16, 0))
