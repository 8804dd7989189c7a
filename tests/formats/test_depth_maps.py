"""Files of depth maps: the numbers that other programs write, and one line for anything else."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from undust.errors import UndustError
from undust.formats.depth_maps import LIMIT, read_depth

SIZE = 4, 3
DEPTHS = np.arange(1, 13).reshape(3, 4) * 20.0


def npy(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def pfm(array: np.ndarray, scale: str = "-1.0", order: str = "<f4") -> bytes:
    height, width = array.shape
    return f"Pf\n{width} {height}\n{scale}\n".encode() + array[::-1].astype(order).tobytes()


def png(array: np.ndarray, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG", **options)
    return content.getvalue()


WRITERS: dict[str, Callable[[], tuple[str, bytes]]] = {
    "float64": lambda: ("a.npy", npy(DEPTHS)),
    "float32": lambda: ("a.npy", npy(DEPTHS.astype(">f4"))),
    "float16": lambda: ("a.NPY", npy(DEPTHS.astype("f2"))),
    "whole numbers": lambda: ("a.npy", npy(DEPTHS.astype("u2"))),
    "by columns": lambda: ("a.npy", npy(np.asfortranarray(DEPTHS))),
    "8 bits": lambda: ("a.png", png(DEPTHS.astype(np.uint8))),
    "16 bits": lambda: ("a.png", png(DEPTHS.astype(np.uint16))),
    "grey in colours": lambda: ("a", png(np.repeat(DEPTHS.astype(np.uint8)[..., None], 3, 2))),
    "pfm": lambda: ("a.pfm", pfm(DEPTHS)),
    "pfm, high byte first": lambda: ("a.pfm", pfm(DEPTHS, "1", ">f4")),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_depth_map(kind: str, tmp_path: Path):
    name, content = WRITERS[kind]()
    (tmp_path / name).write_bytes(content)
    found = read_depth(tmp_path / name, SIZE)
    assert found.tolist() == DEPTHS.tolist()
    disparity = read_depth(tmp_path / name, SIZE, "disparity")
    scale = 257 if kind == "16 bits" else 1
    assert disparity.numpy() == pytest.approx(np.clip(10000 * scale / DEPTHS, 1e-4, 500))


def test_sixteen_bits_have_more_levels_of_the_same_disparities(tmp_path: Path):
    """Their upper 8 bits are those of 8 bits; dark ones too."""
    grey = np.array([[0, 1, 100, 255]], np.uint8)
    (tmp_path / "a.png").write_bytes(png(grey))
    (tmp_path / "b.png").write_bytes(png(grey.astype(np.uint16) * 257))
    (tmp_path / "c.png").write_bytes(png(np.array([[255]], np.uint16)))
    eight, sixteen = (
        read_depth(tmp_path / name, (4, 1), "disparity") for name in ("a.png", "b.png")
    )
    assert eight.tolist() == sixteen.tolist()
    assert eight.tolist() == [[500, 500, 100, 10000 / 255]]
    assert read_depth(tmp_path / "c.png", (1, 1), "disparity").item() == 500


def test_a_profile_and_an_orientation_change_no_number(tmp_path: Path):
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    (tmp_path / "a.png").write_bytes(png(DEPTHS.astype(np.uint8), exif=exif))
    assert read_depth(tmp_path / "a.png", SIZE).tolist() == DEPTHS.tolist()


def test_a_constant_map_is_one(tmp_path: Path):
    (tmp_path / "a.npy").write_bytes(npy(np.full((3, 4), 7.5)))
    assert read_depth(tmp_path / "a.npy", SIZE).unique().tolist() == [7.5]
    (tmp_path / "b.png").write_bytes(png(np.zeros((3, 4), np.uint8)))
    assert read_depth(tmp_path / "b.png", SIZE, "disparity").unique().tolist() == [500]


def changed(value: float) -> np.ndarray:
    depths = DEPTHS.copy()
    depths[1, 2] = value
    return depths


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.npy", npy(changed(math.nan)), "row 1, column 2 is nan; depths are finite and above 0"),
        ("a.npy", npy(changed(math.inf)), "row 1, column 2 is inf"),
        ("a.npy", npy(changed(0)), "row 1, column 2 is 0"),
        ("a.npy", npy(changed(-2)), "row 1, column 2 is -2"),
        ("a.pfm", pfm(changed(math.nan)), "row 1, column 2 is nan"),
        ("a.png", png(changed(0).astype(np.uint8)), "row 1, column 2 is 0"),
        ("a.npy", npy(DEPTHS.T), "another size: 3x4, and the picture has 4x3"),
        ("a.png", png(np.ones((6, 8), np.uint8)), "another size: 8x6, and the picture has 4x3"),
        ("a.pfm", pfm(np.ones((2, 4))), "another size: 4x2, and the picture has 4x3"),
        ("a.npy", npy(DEPTHS[None]), r"its shape is \[1, 3, 4\]; a depth map is \[H, W\]"),
        ("a.npy", npy(np.zeros((0, 4))), "another size: 4x0"),
        ("a.npy", npy(DEPTHS > 1), "it has bool .* not a table of floats or whole numbers"),
        ("a.npy", npy(DEPTHS.astype(complex)), "it has complex128"),
        ("a.npy", npy(DEPTHS)[:-1], "it is damaged: 95 bytes"),
        ("a.npy", png(np.ones((3, 4), np.uint8)), "it is damaged, or no .npy file"),
        ("a.png", png(np.zeros((3, 4, 3), np.uint8) + np.uint8([1, 2, 3])), "has colours"),
        ("a.png", png(np.ones((3, 4, 4), np.uint8)), "transparency"),
        ("a.png", npy(DEPTHS), "cannot be read as a picture"),
        ("a.pfm", pfm(DEPTHS).replace(b"Pf", b"PF"), r"no portable float map in grey \(Pf\)"),
        ("a.pfm", pfm(DEPTHS, "0"), "its scale is b'0'"),
        ("a.pfm", pfm(DEPTHS, "nan"), "its scale is b'nan'"),
        ("a.pfm", pfm(DEPTHS, "x"), "its scale is b'x'"),
        ("a.pfm", pfm(DEPTHS)[:-1], "47 bytes for 4x3 numbers"),
        ("a.pfm", b"Pf 99999999999 9999999 -1 ", "0 bytes for 99999999999x9999999 numbers"),
        ("a.pfm", b"", "is damaged, or no portable float map"),
    ],
)  # fmt: skip
def test_what_is_no_depth_map(name: str, content: bytes, said: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UndustError, match=said) as error:
        read_depth(tmp_path / name, SIZE)
    assert str(error.value).count(name) == 1
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "said"), [(-1, "is -1; they are finite and not below 0"), (math.nan, "is nan")]
)
def test_what_is_no_disparity(value: float, said: str, tmp_path: Path):
    (tmp_path / "a.npy").write_bytes(npy(changed(value)))
    with pytest.raises(UndustError, match=rf"a\.npy: disparities: row 1, column 2 {said}"):
        read_depth(tmp_path / "a.npy", SIZE, "disparity")


@pytest.mark.parametrize("name", ["a.npy", "a.pfm", "a.png"])
def test_no_such_file_and_no_file(name: str, tmp_path: Path):
    with pytest.raises(UndustError, match=rf"{name}.*: No such file"):
        read_depth(tmp_path / name, SIZE)
    (tmp_path / name).mkdir()
    with pytest.raises(UndustError, match=rf"{name} is a folder, not a file"):
        read_depth(tmp_path / name, SIZE)


@pytest.mark.parametrize("name", ["a.npy", "a.pfm"])
def test_large_files_are_refused(name: str, tmp_path: Path):
    with (tmp_path / name).open("wb") as file:
        os.truncate(file.fileno(), LIMIT + 1)
    with pytest.raises(UndustError, match=f"is larger than {LIMIT:,} bytes"):
        read_depth(tmp_path / name, SIZE)


@pytest.mark.parametrize("kind", WRITERS)
@given(st.integers(0, 250), st.binary(max_size=8), st.integers(0, 250))
def test_damaged_files_are_maps_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, kind: str, place: int, other: bytes, cut: int
):
    name, whole = WRITERS[kind]()
    path = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    for content in (whole[:place] + other + whole[place + len(other) :], whole[:cut], other):
        path.write_bytes(content)
        try:
            found = read_depth(path, SIZE)
        except UndustError as error:
            assert path.name in str(error)
            assert "\n" not in str(error)
        else:
            assert found.shape == (3, 4)
            assert bool((found.isfinite() & (found > 0)).all())
