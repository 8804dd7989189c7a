"""The engines by name, and the choice of one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from undust.engines.cpu import for_cpu
from undust.engines.memory import keep_freed_memory
from undust.errors import unknown

AUTO = "auto"
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Engine:
    """A way to compute networks.

    prepare: a network to one with the same result up to rounding, which shares its weights; the
    network itself where the engine has nothing to offer.
    """

    summary: str
    prepare: Callable[[nn.Module], nn.Module]


ENGINES: Mapping[str, Engine] = {
    "torch": Engine(
        "PyTorch's own layers, on any device in any precision", lambda network: network
    ),
    "cpu": Engine("layers that are faster on a CPU, such as Winograd's convolutions", for_cpu),
}


class Prepared:
    """Networks as one engine computes them, each prepared once and kept as long as the network."""

    def __init__(self, name: str) -> None:
        """Raises UndustError for an unknown engine."""
        if name not in ENGINES:
            raise unknown("engine", name, [AUTO, *ENGINES])
        self.name = name
        self._known: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()

    def __call__(self, network: N) -> N:
        """The prepared network."""
        known = self._known.get(network)
        if known is None:
            known = ENGINES[self.name].prepare(network)
            if known is not network:  # as a value it would keep itself alive
                self._known[network] = known
        return cast("N", known)


def chosen(name: str, networks: Iterable[nn.Module], device: torch.device) -> Prepared:
    """The engine of that name for networks on a device; for "auto" the fastest exact one.

    If it has nothing to offer for them, it is "torch", with a RuntimeWarning if another one was
    asked for. Raises UndustError for an unknown one.
    """
    plain = Prepared("torch")
    if device.type == "cpu":
        keep_freed_memory()
    engine = Prepared("cpu" if name == AUTO else name)
    if device.type == "cpu" and any(engine(network) is not network for network in networks):
        return engine
    if name not in (AUTO, plain.name):
        note = f"the engine {name} has nothing to offer for this model here: torch is used"
        warnings.warn(note, RuntimeWarning, stacklevel=2)
    return plain
