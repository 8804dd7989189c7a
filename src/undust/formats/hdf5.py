"""Weights from an HDF5 file, as Keras writes them.

HDF5 files can refer to other files and to filters in other libraries: only what weights need is
read, whole numbers of bytes that lie in the file itself. `pickles.unpack` does this in a separate,
limited process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undust.errors import UndustError, printable
from undust.regular import open_regular

MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_DEPTH = 16  # of groups
MAX_OBJECTS = 10_000


def is_hdf5(path: Path) -> bool:
    """Whether a file is an HDF5 file, by its first bytes."""
    with open_regular(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def read(path: Path) -> dict[str, Tensor]:
    """The float32 tensors of a file by their paths in it, such as "block1/layers/conv2d/vars/0".

    Raises UndustError, without the path, without the extra `features`, and for contents that
    weights do not need: links, compressed, virtual or external data, other types.
    """
    try:
        import h5py
    except ImportError as error:
        raise UndustError(
            "it is an HDF5 file, and reading it needs another package: "
            "pip install 'undust[features]'"
        ) from error
    with h5py.File(path, "r", locking=False) as file:
        tensors = _tensors(h5py, file)
    if not tensors:
        raise UndustError("it holds no tensors")
    return tensors


def _tensors(h5py: Any, file: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    room = file.id.get_filesize()
    waiting: list[tuple[str, Any]] = [("", file)]
    objects = 0
    while waiting:
        prefix, group = waiting.pop()
        for key in group:
            name = f"{prefix}/{key}" if prefix else str(key)
            objects += 1
            if objects > MAX_OBJECTS or name.count("/") > MAX_DEPTH:
                raise UndustError("it has more groups than weights need")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise UndustError(f"its {printable(name)} is a link, not data")
            found = group[key]
            if isinstance(found, h5py.Group):
                waiting.append((name, found))
                continue
            plain = isinstance(found, h5py.Dataset) and not found.is_virtual
            if not plain or found.chunks or found.external or found.dtype != "<f4":
                raise UndustError(f"its {printable(name)} is no plain float32 data")
            room -= found.nbytes
            if room < 0:
                raise UndustError(f"its {printable(name)} is larger than the file")
            tensors[name] = torch.from_numpy(found[()])
    return tensors
