"""The change of one module's weight, from the tensors of a LoRA file, in factors.

Every kind of factor is brought to matrices of the form [out, in·kernel], to which a convolution's
weight [out, in, *kernel] is flattened, so that linear layers and convolutions are one case. Nothing
is multiplied here: the tensors stay views of the file, held against the shape of the weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from undust.errors import UndustError

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Product:
    """A matrix of low rank, up·down; with a core the Tucker form of a convolution's weight.

    up: [out, p]; down: [p, in·kernel], or [q, in] with a core [p, q, kernel].
    """

    up: Tensor
    down: Tensor
    core: Tensor | None = None

    @property
    def rank(self) -> int:
        """The rank that alpha is divided by."""
        return self.down.shape[0]


@dataclass(frozen=True, eq=False)
class Hadamard:
    """Two matrices, multiplied element by element (LoHa)."""

    left: Product
    right: Product


@dataclass(frozen=True, eq=False)
class Kronecker:
    """Every element of the left matrix times the whole of the right one (LoKr)."""

    left: Tensor | Product
    right: Tensor | Product


Factors = Tensor | Product | Hadamard | Kronecker
"""Of a matrix [out, in·kernel]; a norm's weight is a Tensor [n]."""


def factors(found: Mapping[str, Tensor], shape: Shape) -> tuple[Factors | None, int]:
    """The change of a weight of the given shape, and the rank that scales it; 0 for none.

    found: the tensors by their roles (`names.ROLES`); None without any. Raises UndustError for
    tensors that are missing, too many, or of shapes that do not make that of the weight.
    """
    if not found:
        return None, 0
    kinds = sorted({role.split("_")[0] for role in found})
    if len(kinds) > 1:
        raise UndustError(f"has factors of two kinds ({' and '.join(found)})")
    build = _Builder(dict(found), shape)
    change, rank = build.change(kinds[0])
    if build.found:
        raise UndustError(f"has unexpected tensors: {' and '.join(build.found)}")
    return change, rank


def magnitude(lycoris: Tensor | None, peft: Tensor | None, shape: Shape) -> Tensor | None:
    """DoRA's magnitudes, in a shape that broadcasts over a weight of the given shape.

    LyCORIS has one for each output [out, 1, …], in older files one for each input [1, in, 1, …];
    PEFT always one for each output, [out] or [1, out, 1, …]. Raises UndustError for others.
    """
    if lycoris is None and peft is None:
        return None
    if lycoris is not None and peft is not None:
        raise UndustError("has magnitudes of two kinds")
    tensor = lycoris if lycoris is not None else peft
    assert tensor is not None
    _floating("magnitude", tensor)
    rest = (1,) * (len(shape) - 1)
    found = _bare(tensor.shape)
    each_output = {(shape[0],), (shape[0], 1)} | ({(1, shape[0])} if peft is not None else set())
    if found in each_output:
        return tensor.reshape(shape[0], *rest)
    if rest and found == (1, shape[1]):
        return tensor.reshape(1, shape[1], *rest[1:])
    raise _misfit("magnitude", tensor, (shape[0], *rest))


def same(name: str, tensor: Tensor, shape: Shape) -> Tensor:
    """The tensor in this shape, which it has except for lengths of 1 at the end."""
    _floating(name, tensor)
    if _bare(tensor.shape) != _bare(shape):
        raise _misfit(name, tensor, shape)
    return tensor.reshape(shape)


class _Builder:
    """Takes the tensors of a module one after another; `found` are the remaining ones."""

    def __init__(self, found: dict[str, Tensor], shape: Shape) -> None:
        self.found = found
        self.shape = shape

    def change(self, kind: str) -> tuple[Factors, int]:
        """The factors of one kind, and their rank."""
        shape = self.shape
        if kind == "diff":
            tensor = same("diff", self._take("diff"), shape)
            return (tensor.flatten(1) if len(shape) > 1 else tensor), 0
        if len(shape) < 2:
            raise UndustError(f"has the factors of a matrix for a norm's weight {list(shape)}")
        if kind == "lora":
            low = self._product("lora_up", "lora_down", "lora_mid", shape, turned=False)
            return low, low.rank
        if kind == "hada":
            left, right = (
                self._product(f"hada_w{n}_a", f"hada_w{n}_b", f"hada_t{n}", shape) for n in (1, 2)
            )
            return Hadamard(left, right), left.rank
        left, (rows, columns) = self._kronecker_left()
        if shape[0] % rows or shape[1] % columns:
            raise UndustError(f"has a lokr_w1 {[rows, columns]} for a weight {list(shape)}")
        inner = (shape[0] // rows, shape[1] // columns, *shape[2:])
        if "lokr_w2" in self.found:
            right = same("lokr_w2", self._take("lokr_w2"), inner).flatten(1)
        else:
            right = self._product("lokr_w2_a", "lokr_w2_b", "lokr_t2", inner)
        ranks = [side.rank for side in (right, left) if isinstance(side, Product)]
        return Kronecker(left, right), (ranks or [0])[0]

    def _kronecker_left(self) -> tuple[Tensor | Product, tuple[int, int]]:
        """The left factor and its shape."""
        if "lokr_w1" in self.found:
            whole = self._take("lokr_w1")
            rows, columns = _lengths("lokr_w1", whole)
            return _matrix("lokr_w1", whole, (rows, columns)), (rows, columns)
        a, b = self._look("lokr_w1_a"), self._look("lokr_w1_b")
        rows, columns = _lengths("lokr_w1_a", a)[0], _lengths("lokr_w1_b", b)[1]
        return self._product("lokr_w1_a", "lokr_w1_b", "", (rows, columns)), (rows, columns)

    def _product(
        self, up: str, down: str, core: str, shape: Shape, *, turned: bool = True
    ) -> Product:
        """A matrix for a weight of the given shape; `turned`: beside a core, up is [p, out]."""
        a, b = self._take(up), self._take(down)
        if core not in self.found:
            rank = _lengths(down, b)[0]
            return Product(_matrix(up, a, (shape[0], rank)), _matrix(down, b, (rank, *shape[1:])))
        c = self._take(core)
        p, q = _lengths(core, c)
        return Product(
            _matrix(up, a, (p, shape[0])).T if turned else _matrix(up, a, (shape[0], p)),
            _matrix(down, b, (q, shape[1])),
            same(core, c, (p, q, *shape[2:])).reshape(p, q, -1),
        )

    def _look(self, name: str) -> Tensor:
        if name not in self.found:
            raise UndustError(f"has no {name}")
        return self.found[name]

    def _take(self, name: str) -> Tensor:
        tensor = self._look(name)
        del self.found[name]
        return tensor


def _lengths(name: str, tensor: Tensor) -> tuple[int, int]:
    """The first two lengths, neither of them 0."""
    if tensor.ndim < 2 or not tensor.numel():
        raise UndustError(f"has a {name} {list(tensor.shape)}, which is not a matrix")
    return tensor.shape[0], tensor.shape[1]


def _matrix(name: str, tensor: Tensor, shape: Shape) -> Tensor:
    """The tensor, of the shape [a, b, …] or flattened, as a matrix [a, b·…]."""
    _floating(name, tensor)
    flat = (shape[0], math.prod(shape[1:]))
    if _bare(tensor.shape) not in (_bare(shape), flat):
        raise _misfit(name, tensor, shape)
    return tensor.reshape(flat)


def _bare(shape: Shape) -> Shape:
    """The shape without trailing lengths of 1, so that a 1×1 convolution is a matrix."""
    shape = tuple(shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _floating(name: str, tensor: Tensor) -> None:
    if not tensor.dtype.is_floating_point:
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise UndustError(f"has a {name} of {dtype}, not weights")


def _misfit(name: str, tensor: Tensor, shape: Shape) -> UndustError:
    return UndustError(f"has a {name} {list(tensor.shape)} where {list(shape)} is expected")
