"""A second device for machines that have none: tensors that say they lie on cuda:0, and have room.

Their numbers lie in main memory, so that all results are those of the CPU, to the bit. What is
tested is what a real GPU would refuse: tensors of both places in one operation, numbers read
without being fetched, and more bytes than the device has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

ELSEWHERE = torch.device("cuda:0")
CPU = torch.device("cpu")
ACROSS = {"copy_", "__setitem__", "set_"}  # may be given tensors of both places
AT_HOME = {"numpy", "__array__"}  # for tensors of the CPU alone


class There(Tensor):
    """A tensor of the second device."""


def is_there(tensor: Tensor) -> bool:
    return isinstance(tensor, There) or isinstance(tensor.data, There)


class Device(TorchFunctionMode):
    """The second device, for as long as it is entered; `room`: its bytes."""

    def __init__(self, room: int | None = None) -> None:
        super().__init__()
        self.room = room
        self.most = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self._counted = 0  # at least what is used: it still has what was freed since the last count

    @property
    def used(self) -> int:
        """The bytes of all tensors that lie there now."""
        for key in [key for key, (alive, _) in self._held.items() if alive.expired()]:
            del self._held[key]
        self._counted = sum(size for _, size in self._held.values())
        return self._counted

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.device:
            return function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if getattr(function, "__self__", None) is not None and name == "__get__":
            return self._attribute(function, args)
        leaves = tree_flatten((args, kwargs))[0]
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        there = [tensor for tensor in given if is_there(tensor)]
        place = self._place(name, args, kwargs, there)
        if there and name in AT_HOME:
            raise TypeError("can't convert cuda:0 device type tensor to numpy; fetch it first")
        if there and name not in (*ACROSS, "to", "type_as"):
            strangers = [tensor for tensor in given if not is_there(tensor) and tensor.ndim]
            if strangers and not (name == "__getitem__" and is_there(args[0])):
                raise RuntimeError(
                    f"{name}: Expected all tensors to be on the same device, but found at least "
                    f"two devices, cuda:0 and cpu: {[tuple(t.shape) for t in strangers]}"
                )
        if any(isinstance(leaf, torch.device) for leaf in leaves):
            args, kwargs = tree_map_only(torch.device, lambda _: CPU, (args, kwargs))
        if name == "to":
            args = tree_map_only(str, lambda _: CPU, args)
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
        if place is CPU and name in ("to", "cpu") and there:
            result = result.clone() if result is args[0] else result
            return result.as_subclass(Tensor)
        if place == ELSEWHERE:
            return _mapped(lambda t: self._put(t, fresh=not there), result)
        return _mapped(_home, result)

    def _attribute(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args)
        if not isinstance(args[0], Tensor) or not is_there(args[0]):
            return result
        if isinstance(result, torch.device):
            return ELSEWHERE
        return result.as_subclass(There) if isinstance(result, Tensor) else result

    def _place(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], there: list[Tensor]
    ) -> torch.device:
        """Where the result is to lie."""
        if name == "cpu":
            return CPU
        if kwargs.get("device") is not None:
            return torch.device(kwargs["device"])
        for asked in args[1:]:
            if isinstance(asked, str) and name == "to":
                return torch.device(asked)
            if isinstance(asked, torch.device):
                return asked
        if name in ("to", "type_as"):
            other = next((arg for arg in args[1:] if isinstance(arg, Tensor)), args[0])
            return ELSEWHERE if is_there(other) else CPU
        if name in ACROSS:
            return ELSEWHERE if is_there(args[0]) else CPU
        return ELSEWHERE if there else CPU

    def _put(self, tensor: Tensor, *, fresh: bool) -> Tensor:
        """The tensor as one of the second device; OutOfMemoryError if it has no room for it."""
        with torch._C.DisableTorchFunctionSubclass():
            if fresh and not isinstance(tensor, There):
                tensor = tensor.clone()  # of nothing that lies at home
            storage = tensor.untyped_storage()
            alive = StorageWeakRef(storage)
            size = storage.nbytes()
            if alive.cdata not in self._held:  # a reference keeps the address from being used again
                # Counting again takes long, and only matters above what there was or may be.
                limit = self.most if self.room is None else min(self.most, self.room)
                if self._counted + size > limit:
                    used = self.used
                    if self.room is not None and used + size > self.room:
                        raise torch.OutOfMemoryError("CUDA out of memory.")
                    self.most = max(self.most, used + size)
                self._held[alive.cdata] = alive, size
                self._counted += size
            return tensor if isinstance(tensor, There) else tensor.as_subclass(There)


def _mapped(change: Callable[[Tensor], Tensor], result: Any) -> Any:
    """A function's result with each of its tensors changed; most are one tensor or number."""
    if isinstance(result, Tensor):
        return change(result)
    if result is None or isinstance(result, bool | int | float | str):
        return result
    return tree_map_only(Tensor, change, result)


def _home(tensor: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter) or type(tensor) is Tensor:
        return tensor
    return tensor.as_subclass(Tensor)


def weights(network: nn.Module) -> Iterator[Tensor]:
    """All that a network keeps."""
    yield from network.parameters()
    yield from network.buffers()
