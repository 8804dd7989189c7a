"""Networks on a device without room for all: there when asked, at home when memory runs out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from undust.errors import UndustError

T = TypeVar("T")
Place = tuple[nn.Module, str, Tensor | nn.Parameter]
"""A module, the name of one of its weights, and that weight as it lies at home."""


class Lock:
    """A reentrant lock that is copied, or pickled, as another one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Offload:
    """Networks that lie in main memory, and come to a device when they are asked.

    There they stay until its memory runs out; then all others are sent home, and the one that was
    asked is asked again. So what fits is never moved twice, and a device needs room for one network
    at work. Going home costs nothing: the weights there have been kept, and those that were not
    cast are pages of their file.

    device: where to ask; None where the networks lie, with nothing ever moved, as for the CPU.
    Several threads may ask: on another device than the CPU one after another.
    """

    def __init__(self, device: torch.device | None) -> None:
        self.device = device
        self._moves = device is not None and device.type != "cpu"
        self._lock = Lock()
        self._away: dict[nn.Module, list[Place]] = {}
        # By the weight at home: networks that share it share the one on the device.
        self._there: dict[int, Tensor] = {}

    def run(self, network: nn.Module, fn: Callable[[], T], *fallbacks: Callable[[], T]) -> T:
        """What the question comes to, with the network on the device.

        It may be asked twice; after that `frugal`, which asks the same with less memory, if there
        is a way. Raises UndustError if there is no room even for that and the one network.
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
            # Not while the error is held: its frames hold what the question had made.
            self.clear()
        raise UndustError(
            f"device: {self.device or 'the machine'} has not enough memory for this; smaller "
            "pictures, fewer at once (exact: one by one) or half precision (dtype) need less"
        )

    def clear(self) -> None:
        """Sends every network home."""
        with self._lock:
            while self._away:
                _, places = self._away.popitem()
                for module, name, home in places:
                    setattr(module, name, home)
            self._there.clear()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()

    def _bring(self, network: nn.Module) -> None:
        if network in self._away:
            return
        places = self._away[network] = []
        # Tensors of inference mode could not be changed later.
        with torch.inference_mode(False), torch.no_grad():
            for module, name, weight in _weights(network):
                if weight.device == self.device:
                    continue
                places.append((module, name, weight))
                if id(weight) not in self._there:
                    self._there[id(weight)] = weight.detach().to(self.device)
                moved = self._there[id(weight)]
                kept = isinstance(weight, nn.Parameter)
                setattr(module, name, nn.Parameter(moved, weight.requires_grad) if kept else moved)


def _weights(network: nn.Module) -> Iterator[Place]:
    for module in network.modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        yield from ((module, name, weight) for name, weight in own)


def _is_full(error: RuntimeError) -> bool:
    """Whether it says that memory has run out: that of a GPU, of Apple's, or the machine's own."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    said = str(error)
    return "out of memory" in said or "can't allocate memory" in said
