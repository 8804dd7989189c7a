"""Safetensors files: written whole, checked before they are believed, read through a memory map.

The file is: eight bytes, the header's length N (little endian); N bytes of JSON, name -> dtype,
shape and place; then the tensors' bytes, one after the other, without holes or overlaps.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from undust.errors import UndustError
from undust.formats.files import atomic, shown

HEADER_LIMIT = 100_000_000  # bytes; the library's own limit
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """What the header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a file holds, known without reading a tensor."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]


def save(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes the tensors, of any shape and device; the same content always gives the same bytes.

    Written here and not by the library, which is not crash-safe, orders metadata at random and
    refuses tensors that share memory. Raises UndustError for a dtype that the format lacks and as
    `files.atomic` does.
    """
    # Wide elements first, so that every tensor starts at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    head: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in NAMES:
            raise UndustError(
                f"cannot write {path}: {shown(name)} is {tensor.dtype}, not in the format"
            )
        start, end = end, end + tensor.numel() * tensor.element_size()
        head[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path) as temporary, temporary.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def load(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Every tensor of the file, on the CPU, floating-point ones as `dtype` if one is given.

    Raises UndustError, naming the file and what is wrong with it, for anything but a whole file.
    """
    names = header(path).tensors
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: cast(Tensor, file.get_tensor(name)) for name in names}
    except (SafetensorError, OSError) as error:
        raise UndustError(f"{path} cannot be read: {error}") from error
    if dtype is not None:
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                tensors[name] = tensor.to(dtype)
    return tensors


def header(path: Path) -> Header:
    """The file's header, all of its claims checked against each other and against the file's size.

    Raises UndustError as `load` does.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            text = file.read(length) if length <= min(size - 8, HEADER_LIMIT) else b""
    except OSError as error:
        raise UndustError(f"{path} cannot be read: {error.strerror}") from error
    if not text.startswith(b"{"):
        raise UndustError(f"{path} is not a safetensors file: {_guess(start, size, length)}")
    try:
        claims = json.loads(text, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise UndustError(f"{path} has a damaged header: {error}") from error
    metadata = claims.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UndustError(f"{path} has a damaged header: __metadata__ must hold text alone")
    return Header(_entries(path, claims, size - 8 - length), cast("dict[str, str]", metadata))


def content_hash(path: Path) -> str:
    """The SHA-256 of the file in hexadecimal; its first 10 digits are what UIs show as model hash.

    Raises UndustError if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UndustError(f"{path} cannot be read: {error.strerror}") from error


def _entries(path: Path, claims: dict[str, Any], size: int) -> dict[str, Entry]:
    """Checks that the tensors fill the `size` bytes after the header exactly."""
    entries: dict[str, Entry] = {}
    places: list[tuple[int, int, str]] = []
    for name, claim in claims.items():
        match claim:
            case {
                "dtype": str(dtype),
                "shape": [*shape],
                "data_offsets": [int(start), int(end)],
            } if all(type(length) is int and length >= 0 for length in shape):
                if dtype not in DTYPES:
                    raise UndustError(f"{path}: {shown(name)} has the unknown dtype {dtype!r:.40}")
                entry = Entry(DTYPES[dtype], tuple(shape))
            case _:
                raise UndustError(f"{path} has a damaged header: {shown(name)} is not described")
        if end - start != math.prod(entry.shape) * entry.dtype.itemsize:
            raise UndustError(
                f"{path} is damaged: {shown(name)} has another size than its shape says"
            )
        entries[name] = entry
        places.append((start, end, name))
    reached = 0
    for start, end, name in sorted(places):
        if start != reached:
            raise UndustError(
                f"{path} is damaged: {shown(name)} does not start where the last one ends"
            )
        reached = end
    if reached != size:
        raise UndustError(
            f"{path} is {'cut short' if size < reached else 'damaged'}: "
            f"its header describes {reached:,} bytes of tensors, the file has {size:,}"
        )
    return entries


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name stands in it twice")
    return content


def _guess(start: bytes, size: int, length: int) -> str:
    """What a file that does not begin as it should is more likely to be."""
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "it is a pickle (.ckpt, .pt, .bin), which can run code; ask for a safetensors file"
    if start.startswith(b"version "):
        return "it is a Git LFS pointer; fetch the file itself with 'git lfs pull'"
    if start.lstrip()[:1] == b"<":
        return "it is a web page; the download went wrong"
    if size < 8:
        return f"it has {size} bytes"
    if length > size - 8:
        return f"its header would be {length:,} bytes long, the file has {size:,}; cut short?"
    return "it does not begin with a header"
