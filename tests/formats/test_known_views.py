"""Folders of warped frames and masks: round trips, and one line for what does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from undust.errors import UndustError
from undust.formats.known_views import read_known_views, write_known_views


def film(frames: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    bytes_ = torch.randint(0, 256, (frames, 3, 4, 6), generator=generator)
    return bytes_ / 127.5 - 1, torch.rand(frames, 4, 6, generator=generator) > 0.4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_known_views(tmp_path / "film", *film())
    return tmp_path / "film"


def test_views_come_back(folder: Path):
    views, masks = read_known_views(folder)
    assert views.dtype == torch.float32
    torch.testing.assert_close(views, film()[0], rtol=0, atol=1e-6)
    assert torch.equal(masks, film()[1])
    assert torch.equal(read_known_views(folder, 3)[0], views)
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"mask-{k:04d}.png" for k in range(3)),
        *(f"view-{k:04d}.png" for k in range(3)),
    ]


def test_masks_of_numbers_are_written_too(tmp_path: Path):
    views, masks = film()
    write_known_views(tmp_path / "a", views, masks.double())
    assert torch.equal(read_known_views(tmp_path / "a")[1], masks)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32])
def test_files_of_other_programs(folder: Path, kind: type):
    """JPEG, masks of numbers, in colours and smoothed, and other files beside them."""
    views, masks = film()
    constant = Image.new("RGB", (6, 4), (255, 0, 0))
    (folder / "view-0001.png").unlink()
    constant.save(folder / "view-0001.JPG", "JPEG", quality=100, subsampling=0)
    (folder / "mask-0001.png").unlink()
    np.save(folder / "mask-0001.npy", masks[1].numpy().astype(kind))
    smooth = np.where(masks[2].numpy(), 128, 127).astype(np.uint8)
    Image.fromarray(smooth).convert("RGBA").save(folder / "mask-0002.png")
    (folder / "Thumbs.db").write_bytes(b"")
    (folder / "mask.txt").write_text("")
    found, known = read_known_views(folder)
    assert torch.equal(known, masks)
    red = torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 4, 6)
    torch.testing.assert_close(found[1], red, rtol=0, atol=0.03)
    torch.testing.assert_close(found[2], views[2], rtol=0, atol=1e-6)


def saved(name: str, size: tuple[int, int] = (6, 4)) -> Callable[[Path], object]:
    return lambda folder: Image.new("L", size).save(folder / name)


def array(name: str, content: np.ndarray) -> Callable[[Path], object]:
    def put(folder: Path) -> None:
        (folder / name).with_suffix(".png").unlink()
        np.save(folder / name, content)

    return put


def gone(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (gone("mask-0001.png"), "film has no mask-0001; each of 3 frames needs a view and a mask"),
        (gone("view-0002.png"), "has no view-0002"),
        (gone("view-0000.png", "mask-0000.png"), "has no view-0000"),
        (saved("view-0003.png"), "has no mask-0003; each of 4 frames"),
        (saved("view-0009.png"), "has no view-0003; each of 10 frames"),
        (saved("view-0001.jpg"), r"has both view-0001\.jpg and view-0001\.png; one is needed"),
        (saved("view-01.png"), r"view-01\.png is no name of a view; view-0000 has four digits"),
        (saved("mask-0001.jpg"), r"mask-0001\.jpg is no name of a mask.*ends in \.png or \.npy"),
        (saved("view-٠٠٠٣.png"), "is no name of a view"),
        (saved("view-2000.png"), "2001 frames; views and masks of 1 to 1024 can be read"),
        (saved("view-0001.png", (6, 5)), r"view-0001\.png has 6x5, and .*view-0000\.png 6x4"),
        (saved("mask-0001.png", (5, 4)), r"mask-0001\.png has 5x4, and .*view-0001\.png 6x4"),
        (array("mask-0002.npy", np.ones((6, 4))), r"mask-0002\.npy has 4x6, and"),
        (array("mask-0002.npy", np.ones((1, 4, 6))), r"npy: its shape is \[1, 4, 6\]; a mask is"),
        (array("mask-0002.npy", np.full((4, 6), 0.5)), "npy: a mask is 1 where the view is known"),
        (array("mask-0002.npy", np.full((4, 6), np.nan)), "npy: a mask is 1 where"),
        (array("mask-0002.npy", np.full((4, 6), 1j)), r"mask-0002\.npy: it has complex128"),
        (lambda f: (f / "view-0001.png").write_bytes(b"x"), r"view-0001\.png cannot be read as a"),
        (lambda f: (f / "mask-0001.png").write_bytes(b""), r"mask-0001\.png is an empty file"),
    ],
)  # fmt: skip
def test_what_does_not_fit(folder: Path, change: Callable[[Path], object], said: str):
    change(folder)
    with pytest.raises(UndustError, match=said) as error:
        read_known_views(folder)
    assert "film" in str(error.value)
    assert "\n" not in str(error.value)


def test_another_number_of_frames(folder: Path):
    with pytest.raises(UndustError, match=r"has view-0002\.png, and the film only 2 frames"):
        read_known_views(folder, 2)
    with pytest.raises(UndustError, match="has no view-0003; each of 5 frames"):
        read_known_views(folder, 5)


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs/video/known-views.md"
    [code] = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["known"].shape == (5, 9, 16)
    assert found["known"][0].all()
    assert 0 < found["known"][4].sum() < 144
    assert found["distances"][-1] == 1


def test_no_folder_and_an_empty_one(tmp_path: Path):
    with pytest.raises(UndustError, match="none cannot be read as a folder: No such file"):
        read_known_views(tmp_path / "none")
    with pytest.raises(UndustError, match=": 0 frames; views and masks of 1 to 1024"):
        read_known_views(tmp_path)


def test_too_many_pixels(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("undust.formats.known_views.MAX_PIXELS", 71)
    with pytest.raises(UndustError, match="3 frames of 6x4 are too many pixels; 71 together"):
        read_known_views(folder)


def test_a_folder_with_something_in_it_is_kept(folder: Path):
    views, masks = film(2, seed=1)
    with pytest.raises(UndustError, match="exists and is not empty"):
        write_known_views(folder, views, masks)
    assert torch.equal(read_known_views(folder)[1], film()[1])
    write_known_views(folder, views, masks, replace=True)
    assert torch.equal(read_known_views(folder)[1], masks)


def test_it_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(image: Image.Image, path: Path) -> None:
        if "view-0001" in path.name:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UndustError, match=r"cannot write .*film: No space left"):
        write_known_views(tmp_path / "film", *film())
    assert [*tmp_path.iterdir()] == []


def test_other_shapes_are_refused(tmp_path: Path):
    views, masks = film()
    for wrong in ((views, masks[:2]), (views[:, :1], masks), (views[0], masks[0])):
        with pytest.raises(UndustError, match="known views: "):
            write_known_views(tmp_path / "a", *wrong)
    with pytest.raises(UndustError, match="0 frames; 1 to 1024"):
        write_known_views(tmp_path / "a", views[:0], masks[:0])
    assert [*tmp_path.iterdir()] == []


@settings(max_examples=40)
@given(
    st.sampled_from(["view-0001.png", "mask-0001.npy"]), st.integers(0, 200), st.binary(max_size=9)
)
def test_damaged_files_are_read_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: int, other: bytes
):
    folder = tmp_path_factory.mktemp("damaged") / "film"
    write_known_views(folder, *film())
    if name.endswith("npy"):
        (folder / "mask-0001.png").unlink()
        np.save(folder / name, film()[1][1].numpy())
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:place] + other + whole[place + len(other) :])
    try:
        views, masks = read_known_views(folder)
    except UndustError as error:
        assert name in str(error)
        assert "\n" not in str(error)
    else:
        assert views.shape == (3, 3, 4, 6)
        assert masks.shape == (3, 4, 6)
