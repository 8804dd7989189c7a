"""Files of depth maps: .npy, .pfm, and grey pictures of 8 or 16 bits."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from undust.conditioning.warp import check_depth, depth_of_disparity
from undust.errors import UndustError, printable
from undust.formats.npy_files import read_array
from undust.pictures import LARGEST, grey_numbers
from undust.regular import read_bytes

LIMIT = 8 * LARGEST + 2**16  # bytes of a .npy or .pfm file: the largest picture in float64
DEEP = 257  # 65535/255
LONGEST_HEADER = 200  # bytes of a .pfm file

Numbers = Literal["depth", "disparity"]
"""What a file has: distances, or numbers that fall with them as 1/depth does."""


def read_depth(path: Path, size: tuple[int, int], numbers: Numbers = "depth") -> Tensor:
    """The depth map of a picture of `size` (width, height), float64 [H, W].

    A .npy file has floats or whole numbers [H, W], a .pfm file floats in grey (its scale is not
    applied), and any other is a grey picture.

    numbers: "depth": distances, as they are stored, whose unit is that of the cameras' positions;
    "disparity": 0, far, to 255, near, which `depth_of_disparity` makes depths of 39.2 to 500. A
    picture of 16 bits has it in 257ths.

    Raises UndustError, which names the file, for a map of another size, numbers that are not finite
    or, of depths, not above 0 (of disparities, below 0), and damaged and too large files.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        found = read_array(path, LIMIT, "fiu")
    elif suffix == ".pfm":
        found = _read_pfm(path)
    else:
        grey = grey_numbers(path)
        deep = numbers == "disparity" and grey.dtype == np.uint16
        found = torch.from_numpy(grey.astype(np.float64)) / (DEEP if deep else 1)
    try:
        _check_size(found, size)
        if numbers == "depth":
            check_depth(found)
            return found
        _check_disparity(found)
    except UndustError as error:
        raise UndustError(f"{path}: {error}") from error
    return depth_of_disparity(found)


def _read_pfm(path: Path) -> Tensor:
    """The floats of a grey portable float map, float64 [H, W]; its lowest row is stored first."""
    try:
        content = read_bytes(path, LIMIT)
    except OSError as error:
        raise UndustError(f"{path}: {error.strerror or error}") from error
    header = re.match(rb"Pf\s+(\d+)\s+(\d+)\s+(\S+)\s", content[:LONGEST_HEADER])
    if header is None:
        raise UndustError(f"{path} is damaged, or no portable float map in grey (Pf)")
    width, height = int(header[1]), int(header[2])
    try:
        scale = float(header[3])  # below 0 for numbers with the lowest byte first
    except ValueError:
        scale = 0.0
    if not scale or not math.isfinite(scale):
        raise UndustError(f"{path} is damaged: its scale is {printable(header[3])}")
    rest = content[header.end() :]
    if not width * height or len(rest) != 4 * width * height:
        raise UndustError(f"{path} is damaged: {len(rest)} bytes for {width}x{height} numbers")
    rows = np.frombuffer(rest, "<f4" if scale < 0 else ">f4").reshape(height, width)
    return torch.from_numpy(rows[::-1].astype(np.float64))


def _check_size(found: Tensor, size: tuple[int, int]) -> None:
    if found.ndim != 2:
        raise UndustError(f"its shape is {[*found.shape]}; a depth map is [H, W]")
    height, width = found.shape
    if (width, height) != size:
        raise UndustError(
            f"a depth map of another size: {width}x{height}, and the picture has "
            f"{size[0]}x{size[1]}"
        )


def _check_disparity(found: Tensor) -> None:
    wrong = ~(found.isfinite() & (found >= 0))
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise UndustError(
            f"disparities: row {row}, column {column} is {found[row, column].item():g}; they are "
            "finite and not below 0"
        )
