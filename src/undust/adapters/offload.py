"""Networks moved to a device when they are called, and back when its memory runs out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from undust.errors import UndustError

T = TypeVar("T")
Place = tuple[nn.Module, str, Tensor | nn.Parameter]
"""A module, the name of one of its weights, and that weight in main memory."""


class Lock:
    """A reentrant lock; copying or pickling it makes a new one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Offload:
    """Runs networks on a device, to which their weights are copied when they are called.

    They stay there until its memory runs out; then all of them are removed from it, and the call is
    repeated. So networks that fit together are copied once, and a device needs room for one network
    and its activations. Removal is free: the weights in main memory are kept, and those that were
    not cast are memory-mapped from their file.

    device: None or the CPU to run networks where they are. Several threads may use it; on other
    devices than the CPU their calls are serialised.
    """

    def __init__(self, device: torch.device | None) -> None:
        self.device = device
        self._moves = device is not None and device.type != "cpu"
        self._in_channels_last = device is not None and device.type == "cuda"
        self._lock = Lock()
        self._moved: dict[nn.Module, list[Place]] = {}
        # By the id of the weight in main memory: networks that share it share its copy.
        self._copies: dict[int, Tensor] = {}

    def run(self, network: nn.Module, fn: Callable[[], T], *fallbacks: Callable[[], T]) -> T:
        """The result of `fn()`, with the network on the device.

        When memory runs out, `fn` is called again, then each of `fallbacks`, which compute the same
        in less memory. Raises UndustError if memory runs out in all of them.
        """
        for attempt in (fn, fn, *fallbacks):
            try:
                if not self._moves:
                    return attempt()
                with self._lock:
                    self._bring(network)
                    return attempt()
            except RuntimeError as error:
                if not _is_full(error):
                    raise
            # After the except block: the error's frames refer to the tensors of the failed call.
            self.clear()
        raise UndustError(
            f"device: {self.device or 'the machine'} has not enough memory for this; smaller "
            "pictures, fewer at once (exact: one by one) or half precision (dtype) need less"
        )

    def clear(self) -> None:
        """Removes all networks from the device."""
        with self._lock:
            while self._moved:
                _, places = self._moved.popitem()
                for module, name, original in places:
                    setattr(module, name, original)
            self._copies.clear()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()

    def _bring(self, network: nn.Module) -> None:
        if network in self._moved:
            return
        places = self._moved[network] = []
        # Tensors of inference mode could not be changed later.
        with torch.inference_mode(False), torch.no_grad():
            for module, name, weight in _weights(network):
                if weight.device == self.device:
                    continue
                places.append((module, name, weight))
                if id(weight) not in self._copies:
                    self._copies[id(weight)] = self._copied(weight.detach())
                copy = self._copies[id(weight)]
                if isinstance(weight, nn.Parameter):
                    copy = nn.Parameter(copy, weight.requires_grad)
                setattr(module, name, copy)

    def _copied(self, weight: Tensor) -> Tensor:
        """A weight on the device; kernels in the order in which GPUs convolve faster."""
        if self._in_channels_last and weight.ndim == 4:
            return weight.to(self.device, memory_format=torch.channels_last)
        return weight.to(self.device)


def _weights(network: nn.Module) -> Iterator[Place]:
    for module in network.modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        yield from ((module, name, weight) for name, weight in own)


def _is_full(error: RuntimeError) -> bool:
    """Whether memory has run out, of a GPU (CUDA, Apple's) or of the machine."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    message = str(error)
    return "out of memory" in message or "can't allocate memory" in message
