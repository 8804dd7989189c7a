"""The engines by name, and the choice of one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from undust.engines import compiled, conversion, probe
from undust.engines.compiled import for_compile
from undust.engines.converted import for_openvino
from undust.engines.cpu import for_cpu
from undust.engines.int8 import for_int8
from undust.engines.memory import keep_freed_memory
from undust.errors import unknown

AUTO = "auto"
EXACT = "cpu"  # the fastest engine whose result is the same up to rounding
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Engine:
    """A way to compute networks.

    prepare: a network to one with the same result, as nearly as the engine promises, which shares
    its weights; the network itself where the engine has nothing to offer; missing: why it cannot be
    used here, "" if it can; on_any_device: whether it is for other devices than a CPU too;
    at_first: what makes the first step take longer, "" for nothing.
    """

    summary: str
    prepare: Callable[[nn.Module], nn.Module]
    missing: Callable[[], str] = lambda: ""
    on_any_device: bool = False
    at_first: str = ""


def _in_8_bits(network: nn.Module) -> nn.Module:
    """In 8 bits, or as for a CPU."""
    prepared = for_int8(network)
    return for_cpu(network) if prepared is network else prepared


ENGINES: Mapping[str, Engine] = {
    "torch": Engine(
        "PyTorch's own layers, on any device in any precision", lambda network: network
    ),
    "cpu": Engine("layers that are faster on a CPU, such as Winograd's convolutions", for_cpu),
    "int8": Engine(
        "large layers of denoisers and ControlNets in 8 bits: faster, almost the same picture",
        _in_8_bits,
        lambda: "" if probe.int8_is_faster() else "8-bit integers are not faster here",
    ),
    "compile": Engine(
        "denoisers and ControlNets compiled by torch.compile, once a shape of inputs: for GPUs",
        for_compile,
        compiled.missing,
        on_any_device=True,
        at_first="torch.compile compiles the model for this size",
    ),
    "openvino": Engine(
        "denoisers and ControlNets converted by OpenVINO (an extra), once a shape of inputs",
        for_openvino,
        conversion.missing,
        at_first="OpenVINO converts and compiles the model for this size",
    ),
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

    def gains(self, networks: Iterable[nn.Module]) -> bool:
        """Whether it has something to offer for one of them."""
        return any(self(network) is not network for network in networks)


def chosen(name: str, networks: Iterable[nn.Module], device: torch.device) -> Prepared:
    """The engine of that name for networks on a device; for "auto" the fastest exact one.

    If it cannot be used, or has nothing to offer, the next of "cpu" and "torch", with a
    RuntimeWarning if another one was asked for. Raises UndustError for an unknown one.
    """
    asked, plain = Prepared(EXACT if name == AUTO else name), Prepared("torch")
    if device.type == "cpu":
        keep_freed_memory()
    if asked.name == plain.name:
        return plain
    engine, on_cpu = ENGINES[asked.name], device.type == "cpu"
    if not on_cpu and not engine.on_any_device:
        reason, found = f"it is for CPUs, and the model is on {device.type}", plain
    else:
        networks = [*networks]
        reason, others = engine.missing(), [Prepared(EXACT)] if on_cpu else []
        usable = others if reason else [asked, *others]
        found = next((each for each in usable if each.gains(networks)), plain)
    if name not in (AUTO, found.name):
        reason = reason or "it has nothing to offer for this model"
        note = f"the engine {name} is not used: {reason}; {found.name} takes its place"
        warnings.warn(note, RuntimeWarning, stacklevel=2)
    return found
