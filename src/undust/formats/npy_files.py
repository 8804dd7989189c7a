"""Arrays of numbers in .npy files, read without running anything that they hold."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from undust.errors import UndustError, printable
from undust.regular import read_bytes

MAX_DIMENSIONS = 3  # of an array that is worth an error about its shape
LARGEST_ITEM = 8  # bytes of a number; those of more are not the same on all systems
KINDS = {"f": "floats", "i": "whole numbers", "u": "whole numbers", "b": "truth values"}


def read_array(path: Path, limit: int, kinds: str = "f") -> Tensor:
    """The numbers of a .npy file, float64; kinds: those of numpy that are read, of `KINDS`.

    Raises UndustError, which names the file, if it cannot be read, is larger than `limit` bytes or
    damaged, and for other kinds and more than 3 dimensions.
    """
    try:
        content = read_bytes(path, limit)
    except OSError as error:
        raise UndustError(f"{path}: {error.strerror or error}") from error
    try:
        return _array_of(content, kinds)
    except UndustError as error:
        raise UndustError(f"{path}: {error}") from error


def _array_of(content: bytes, kinds: str) -> Tensor:
    """The header is compared with the size before anything is allocated."""
    file = io.BytesIO(content)
    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_column, kind = read_header(file)
    except Exception as error:  # its parser raises errors of many kinds
        raise UndustError("it is damaged, or no .npy file") from error
    if kind.kind not in kinds or kind.itemsize > LARGEST_ITEM or len(shape) > MAX_DIMENSIONS:
        named = " or ".join(dict.fromkeys(KINDS[each] for each in kinds))
        raise UndustError(
            f"it has {printable(kind)} {printable(shape)}, and not a table of {named}"
        )
    rest = content[file.tell() :]
    size = 1
    for side in shape:
        size *= side
    if len(rest) != size * kind.itemsize or min(shape, default=0) < 0:
        raise UndustError(f"it is damaged: {len(rest)} bytes for numbers {printable([*shape])}")
    numbers = np.frombuffer(rest, kind).reshape(shape, order="F" if by_column else "C")
    return torch.from_numpy(numbers.astype(np.float64, order="C"))
