"""Maps from our tensor names to the keys of another layout, and tensors through them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from undust.errors import UndustError
from undust.formats.folder import summarize_names
from undust.formats.safetensors_file import Entry

Shape = tuple[int, ...]


class TensorLayout(Enum):
    """The layout of a matrix of ours in the original file."""

    SAME = "same"
    PIXEL = "a convolution of one pixel"
    TRANSPOSED = "transposed"
    # One of three that are stored as one matrix, below each other.
    QUERY = "query"
    KEY = "key"
    VALUE = "value"


FUSED = (TensorLayout.QUERY, TensorLayout.KEY, TensorLayout.VALUE)


class KeySpec(NamedTuple):
    """A key of the original file, and the layout of its tensor."""

    key: str
    layout: TensorLayout = TensorLayout.SAME


KeyMap = Mapping[str, KeySpec]
"""Our name → its key and layout; no two names have the same pair."""


def with_prefix(prefix: str, found: KeyMap, omitted: str = "") -> KeyMap:
    """The same map for a file with a prefix before every key instead of `omitted`."""
    return {
        name: KeySpec(prefix + spec.key.removeprefix(omitted), spec.layout)
        for name, spec in found.items()
    }


def from_original(tensors: Mapping[str, Tensor], key_map: KeyMap) -> dict[str, Tensor]:
    """The original file's tensors under our names, in our layouts: views, not copies.

    All keys of the map have to exist and fit (`mismatches`).
    """
    return {name: _read(tensors[spec.key], spec.layout) for name, spec in key_map.items()}


def to_original(tensors: Mapping[str, Tensor], key_map: KeyMap) -> dict[str, Tensor]:
    """Our tensors under the original file's keys, in its layouts: the inverse of `from_original`.

    Raises UndustError unless queries, keys and values are all three given.
    """
    gathered: defaultdict[str, dict[TensorLayout, Tensor]] = defaultdict(dict)
    for name, spec in key_map.items():
        gathered[spec.key][spec.layout] = tensors[name]
    return {key: _write(key, layouts) for key, layouts in gathered.items()}


def original_shapes(ours: Mapping[str, Shape], key_map: KeyMap) -> dict[str, Shape]:
    """The shapes of `to_original`'s tensors for tensors of the given shapes."""
    return {spec.key: _shape(ours[name], spec.layout) for name, spec in key_map.items()}


def mismatches(found: Mapping[str, Shape], ours: Mapping[str, Shape], key_map: KeyMap) -> list[str]:
    """The missing, the unknown and the misshapen ones among the original file's tensors.

    found: their shapes; ours: those of our tensors. One short text for each kind of mismatch, the
    first few of a kind by name.
    """
    wanted = original_shapes(ours, key_map)
    pixels = {spec.key for spec in key_map.values() if spec.layout is TensorLayout.PIXEL}

    def fits(key: str) -> bool:
        # A convolution of one pixel is also found as the matrix it is.
        if key not in pixels:
            return found[key] == wanted[key]
        matrix = wanted[key][:2]
        return found[key] in (wanted[key], matrix, (*matrix, 1))

    return [
        *summarize_names("missing", wanted.keys() - found.keys()),
        *summarize_names("unknown", found.keys() - wanted.keys()),
        *summarize_names(
            "of another shape",
            (
                f"{key} {list(found[key])} instead of {list(wanted[key])}"
                for key in wanted.keys() & found.keys()
                if not fits(key)
            ),
        ),
    ]


def check_tensors(
    found: Mapping[str, Entry], ours: Mapping[str, Shape], key_map: KeyMap, where: str
) -> None:
    """Raises UndustError for any `mismatches` and for integers; where: the tensors' source."""
    shapes = {key: entry.shape for key, entry in found.items()}
    if wrong := mismatches(shapes, ours, key_map):
        raise UndustError(f"{where} does not fit: {'; '.join(wrong)}")
    for key in sorted(spec.key for spec in key_map.values()):
        if not found[key].dtype.is_floating_point:
            raise UndustError(f"{key} holds {found[key].dtype}, not weights")


def _read(tensor: Tensor, layout: TensorLayout) -> Tensor:
    match layout:
        case TensorLayout.SAME:
            return tensor
        case TensorLayout.PIXEL:
            return tensor.flatten(1)
        case TensorLayout.TRANSPOSED:
            return tensor.T
        case TensorLayout.QUERY | TensorLayout.KEY | TensorLayout.VALUE:
            return tensor.chunk(len(FUSED))[FUSED.index(layout)]


def _write(key: str, layouts: Mapping[TensorLayout, Tensor]) -> Tensor:
    if not layouts.keys().isdisjoint(FUSED):
        if absent := [layout.value for layout in FUSED if layout not in layouts]:
            raise UndustError(f"{key} cannot be written without {' and '.join(absent)}")
        return torch.cat([layouts[layout] for layout in FUSED])
    [(layout, tensor)] = layouts.items()
    match layout:
        case TensorLayout.PIXEL:
            return tensor[:, :, None, None]
        case TensorLayout.TRANSPOSED:
            return tensor.T
        case _:
            return tensor


def _shape(shape: Shape, layout: TensorLayout) -> Shape:
    match layout:
        case TensorLayout.SAME:
            return shape
        case TensorLayout.PIXEL:
            return (*shape, 1, 1)
        case TensorLayout.TRANSPOSED:
            return shape[::-1]
        case TensorLayout.QUERY | TensorLayout.KEY | TensorLayout.VALUE:
            return (len(FUSED) * shape[0], *shape[1:])
