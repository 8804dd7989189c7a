"""Safetensors files: written atomically, validated before use, read through a memory map.

The file is: eight bytes, the header's length N (little endian); N bytes of JSON, name -> dtype,
shape and place; then the tensors' bytes, one after the other, without holes or overlaps.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from undust.errors import UndustError, printable, quoted
from undust.formats.files import atomic
from undust.regular import Opener, open_regular

HEADER_LIMIT = 100_000_000  # bytes; the library's own limit
# A header may be this long plus an eighth of the file: parsed, it takes many times its size.
HEADER_ROOM = 3 * 2**19
MAX_DIMENSIONS = 8  # of a tensor; a convolution over time has 5, and torch fails from 26 or 65 on
MAX_NUMBERS = 2**59  # in a tensor, lengths of 0 not counted; more overflow in torch
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
    """The dtype and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """The contents of a file without the tensors' values.

    starts: the offset of each tensor in the file, in bytes.
    """

    tensors: dict[str, Entry]
    metadata: dict[str, str]
    starts: dict[str, int]


def save(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    wrote: Callable[[int], object] = int,
) -> None:
    """Writes tensors of any shape and device atomically; the same contents give the same bytes.

    dtype: of the floating-point ones in the file, each cast before it is written; None to keep
    each; wrote: called with the size of each tensor written. The library is not used because it is
    not crash-safe, orders metadata at random and refuses tensors that share memory. Raises
    UndustError for a dtype that the format lacks, for a value outside the range of `dtype`, and as
    `files.atomic`.
    """
    dtypes = {
        name: dtype if dtype and tensor.is_floating_point() else tensor.dtype
        for name, tensor in tensors.items()
    }
    # Wide elements first, so that every tensor starts at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))
    head: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        if dtypes[name] not in NAMES:
            raise UndustError(
                f"cannot write {path}: {printable(name)} is {dtypes[name]}, not in the format"
            )
        start, end = end, end + tensors[name].numel() * dtypes[name].itemsize
        head[name] = {
            "dtype": NAMES[dtypes[name]],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path) as temporary, temporary.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = _cast(name, tensors[name].detach().cpu(), dtypes[name])
            flat = tensor.contiguous().reshape(-1).view(torch.uint8)
            file.write(flat.numpy().data)
            wrote(len(flat))


def load(
    path: Path, dtype: torch.dtype | None = None, names: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, floating-point ones as `dtype` if one is given.

    names: of the tensors to load; None for all. A tensor that keeps its dtype is memory-mapped: its
    pages are read when they are used. Others are read and cast one after another: the peak is the
    result and one tensor of the file. Raises UndustError for a damaged or incomplete file.
    """
    head = header(path)
    wanted = list(head.tensors if names is None else names)
    if absent := [name for name in wanted if name not in head.tensors]:
        raise UndustError(f"{path} has no {printable(absent[0])}")
    wanted.sort(key=head.starts.__getitem__)  # to read the disk from front to back
    entries = {name: head.tensors[name] for name in wanted}
    kept = {
        name: dtype in (None, entry.dtype) or not entry.dtype.is_floating_point
        for name, entry in entries.items()
    }
    # Cast from the map, all pages of the file would stay in memory beside the result.
    buffer = torch.empty(
        max((entry.size for name, entry in entries.items() if not kept[name]), default=0),
        dtype=torch.uint8,
    )
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, "pt") as mapped, open_regular(path) as file:
            for name, entry in entries.items():
                if kept[name]:
                    tensors[name] = mapped.get_tensor(name)
                else:
                    flat = _read(file, head.starts[name], buffer[: entry.size])
                    tensors[name] = flat.view(entry.dtype).reshape(entry.shape).to(dtype)
    except (SafetensorError, OSError, EOFError) as error:
        raise UndustError(f"{path} cannot be read: {error}") from error
    return tensors


def header(path: Path) -> Header:
    """The header of a file, checked for consistency and against the size of the file.

    Raises UndustError as `load`.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            text = file.read(length) if length <= min(size - 8, _header_limit(size)) else b""
    except OSError as error:
        raise UndustError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UndustError(f"{path} is not a valid file name: {error}") from error
    if not text.startswith(b"{"):
        raise UndustError(f"{path} is not a safetensors file: {_guess(start, size, length)}")
    try:
        claims = json.loads(text, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise UndustError(f"{path} has a damaged header: {error}") from error
    metadata = claims.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UndustError(f"{path} has a damaged header: __metadata__ has to be text")
    entries, places = _entries(path, claims, size - 8 - length)
    starts = {name: 8 + length + place for name, place in places.items()}
    return Header(entries, cast("dict[str, str]", metadata), starts)


def content_hash(path: Path, opened: Opener = open_regular) -> str:
    """The SHA-256 of a file in hexadecimal; UIs show its first 10 digits as model hash.

    Raises UndustError if the file cannot be read.
    """
    try:
        with opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UndustError(f"{path} cannot be read: {error.strerror}") from error


def files_hash(paths: Iterable[Path]) -> str:
    """The SHA-256 of the contents of files in their order; of one file its `content_hash`."""
    hashes = [content_hash(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def joined_hash(hashes: Iterable[str]) -> str:
    """One SHA-256 of the hashes of several contents, in order."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def tensors_hash(path: Path) -> str:
    """The SHA-256 of the bytes after the header, in hexadecimal, so without the metadata.

    As kohya has it; picture sites identify LoRAs by its first 12 digits. Raises UndustError if
    the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            file.seek(8 + min(int.from_bytes(file.read(8), "little"), HEADER_LIMIT))
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UndustError(f"{path} cannot be read: {error.strerror}") from error


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor as `dtype`; UndustError if finite values would become infinite."""
    if tensor.dtype == dtype:
        return tensor
    cast = tensor.to(dtype)
    if not cast.isfinite().all() and tensor.isfinite().all():
        raise UndustError(
            f"{printable(name)} holds {tensor.abs().max().item():.3g}, outside the range of {dtype}"
        )
    return cast


def _read(file: BufferedReader, start: int, into: Tensor) -> Tensor:
    """Fills a flat tensor of bytes from the file."""
    file.seek(start)
    if file.readinto(into.numpy().data) != len(into):
        raise EOFError("it became shorter while it was read")
    return into


def _entries(
    path: Path, claims: dict[str, Any], size: int
) -> tuple[dict[str, Entry], dict[str, int]]:
    """The tensors, checked to fill the `size` bytes after the header, and their offsets."""
    entries: dict[str, Entry] = {}
    places: list[tuple[int, int, str]] = []
    for name, claim in claims.items():
        match claim:
            case {
                "dtype": str(dtype),
                "shape": [*shape],
                "data_offsets": [int(start), int(end)],
            } if all(type(length) is int and length >= 0 for length in shape):
                if (
                    len(shape) > MAX_DIMENSIONS
                    or math.prod(length or 1 for length in shape) > MAX_NUMBERS
                ):
                    raise UndustError(
                        f"{path}: {printable(name)} has a shape of {len(shape)} dimensions, "
                        f"{quoted(shape)}, too many for weights"
                    )
                if dtype not in DTYPES:
                    raise UndustError(
                        f"{path}: {printable(name)} has the unknown dtype {dtype!r:.40}"
                    )
                entry = Entry(DTYPES[dtype], tuple(shape))
            case _:
                raise UndustError(
                    f"{path} has a damaged header: {printable(name)} has no dtype, shape or offsets"
                )
        if end - start != entry.size:
            raise UndustError(
                f"{path} is damaged: the size of {printable(name)} contradicts its shape"
            )
        entries[name] = entry
        places.append((start, end, name))
    reached = 0
    for start, end, name in sorted(places):
        if start != reached:
            raise UndustError(
                f"{path} is damaged: {printable(name)} does not start where the last one ends"
            )
        reached = end
    if reached != size:
        raise UndustError(
            f"{path} is {'cut short' if size < reached else 'damaged'}: "
            f"its header describes {reached:,} bytes of tensors, the file has {size:,}"
        )
    return entries, {name: start for start, _, name in places}


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name stands in it twice")
    return content


def _guess(start: bytes, size: int, length: int) -> str:
    """A guess of what a file without a valid header is."""
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return (
            "it is a pickle (.ckpt, .pt, .bin), which can run code; undust convert reads it safely"
        )
    if start.startswith(b"version "):
        return "it is a Git LFS pointer; fetch the file itself with 'git lfs pull'"
    if start.lstrip()[:1] == b"<":
        return "it is a web page; the download went wrong"
    if size < 8:
        return f"it has {size} bytes"
    if length > size - 8:
        return f"its header would be {length:,} bytes long, the file has {size:,}; cut short?"
    if length > _header_limit(size):
        return f"its header is {length:,} bytes long, too long for a file of {size:,}"
    return "it does not begin with a header"


def _header_limit(size: int) -> int:
    """The limit for the header of a file of this size, in bytes."""
    return min(HEADER_LIMIT, HEADER_ROOM + size // 8)
