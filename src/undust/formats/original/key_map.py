"""Where a tensor of ours lies in a file of other names, and in which form it lies there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from undust.errors import UndustError
from undust.formats.folder import named

Shape = tuple[int, ...]


class TensorLayout(Enum):
    """How the original file writes a matrix of ours."""

    SAME = "same"
    PIXEL = "a convolution of one pixel"
    TRANSPOSED = "transposed"
    # One of three that are written as a single one, below each other.
    QUERY = "query"
    KEY = "key"
    VALUE = "value"


STACK = (TensorLayout.QUERY, TensorLayout.KEY, TensorLayout.VALUE)


class KeySpec(NamedTuple):
    """A key of the original file, and the form of what stands there."""

    key: str
    form: TensorLayout = TensorLayout.SAME


KeyMap = Mapping[str, KeySpec]
"""Our key → its place; no two of ours have the same place."""


def under(prefix: str, found: KeyMap, omitted: str = "") -> KeyMap:
    """The same map for a file with a prefix before every key, in the place of what it omits."""
    return {
        name: KeySpec(prefix + spec.key.removeprefix(omitted), spec.form)
        for name, spec in found.items()
    }


def read(tensors: Mapping[str, Tensor], places: KeyMap) -> dict[str, Tensor]:
    """The original file's tensors under our names, in our forms; views of them, not copies.

    All places have to be there and fit (`faults`).
    """
    return {name: _read(tensors[place.key], place.form) for name, place in places.items()}


def write(tensors: Mapping[str, Tensor], places: KeyMap) -> dict[str, Tensor]:
    """Our tensors under the original file's names, in its forms: the inverse of `read`.

    Raises UndustError for queries, keys and values that are not all three there.
    """
    gathered: defaultdict[str, dict[TensorLayout, Tensor]] = defaultdict(dict)
    for name, place in places.items():
        gathered[place.key][place.form] = tensors[name]
    return {key: _write(key, forms) for key, forms in gathered.items()}


def shapes(ours: Mapping[str, Shape], places: KeyMap) -> dict[str, Shape]:
    """The shapes in which `write` writes tensors of the given shapes."""
    return {place.key: _shape(ours[name], place.form) for name, place in places.items()}


def faults(found: Mapping[str, Shape], ours: Mapping[str, Shape], places: KeyMap) -> list[str]:
    """What is missing, unknown and of another shape among the original file's tensors.

    found: their shapes; ours: those of our tensors. One short text for each kind of fault, the
    first few of a kind by name.
    """
    wanted = shapes(ours, places)
    pixels = {place.key for place in places.values() if place.form is TensorLayout.PIXEL}

    def fits(key: str) -> bool:
        # A convolution of one pixel is also found as the matrix it is.
        if key not in pixels:
            return found[key] == wanted[key]
        matrix = wanted[key][:2]
        return found[key] in (wanted[key], matrix, (*matrix, 1))

    return [
        *named("missing", wanted.keys() - found.keys()),
        *named("unknown", found.keys() - wanted.keys()),
        *named(
            "of another shape",
            (
                f"{key} {list(found[key])} instead of {list(wanted[key])}"
                for key in wanted.keys() & found.keys()
                if not fits(key)
            ),
        ),
    ]


def check(
    found: Mapping[str, Shape], ours: Mapping[str, Shape], places: KeyMap, where: str
) -> None:
    """Raises UndustError, naming `where` the tensors are from, if `faults` finds any."""
    if wrong := faults(found, ours, places):
        raise UndustError(f"{where} does not fit: {'; '.join(wrong)}")


def _read(tensor: Tensor, form: TensorLayout) -> Tensor:
    match form:
        case TensorLayout.SAME:
            return tensor
        case TensorLayout.PIXEL:
            return tensor.flatten(1)
        case TensorLayout.TRANSPOSED:
            return tensor.T
        case TensorLayout.QUERY | TensorLayout.KEY | TensorLayout.VALUE:
            return tensor.chunk(len(STACK))[STACK.index(form)]


def _write(key: str, forms: Mapping[TensorLayout, Tensor]) -> Tensor:
    if not forms.keys().isdisjoint(STACK):
        if absent := [form.value for form in STACK if form not in forms]:
            raise UndustError(f"{key} cannot be written without {' and '.join(absent)}")
        return torch.cat([forms[form] for form in STACK])
    [(form, tensor)] = forms.items()
    match form:
        case TensorLayout.PIXEL:
            return tensor[:, :, None, None]
        case TensorLayout.TRANSPOSED:
            return tensor.T
        case _:
            return tensor


def _shape(shape: Shape, form: TensorLayout) -> Shape:
    match form:
        case TensorLayout.SAME:
            return shape
        case TensorLayout.PIXEL:
            return (*shape, 1, 1)
        case TensorLayout.TRANSPOSED:
            return shape[::-1]
        case TensorLayout.QUERY | TensorLayout.KEY | TensorLayout.VALUE:
            return (len(STACK) * shape[0], *shape[1:])
