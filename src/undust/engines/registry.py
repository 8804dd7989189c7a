"""The engines by name, and the choice of one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from undust.engines import compiled, conversion, fp8, probe
from undust.engines.compiled import for_compile
from undust.engines.converted import for_openvino
from undust.engines.cpu import for_cpu
from undust.engines.fp8 import for_fp8
from undust.engines.gpu import for_gpu
from undust.engines.int8 import for_int8
from undust.engines.memory import keep_freed_memory
from undust.errors import unknown

AUTO = "auto"
PLAIN = "torch"
CPU, GPU = "cpu", "gpu"  # the fastest engines whose results are the same up to rounding
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Engine:
    """A way to compute networks.

    prepare: a network to one with the same result, as nearly as the engine promises, which shares
    its weights; the network itself where the engine has nothing to offer; missing: why it cannot be
    used here, "" if it can; place: the kind of device it is for, `CPU` or `GPU`, "" for both;
    at_first: what makes the first step take longer, "" for nothing.
    """

    summary: str
    prepare: Callable[[nn.Module], nn.Module]
    missing: Callable[[], str] = lambda: ""
    place: str = ""
    at_first: str = ""


ENGINES: Mapping[str, Engine] = {
    PLAIN: Engine("PyTorch's own layers, on any device in any precision", lambda network: network),
    CPU: Engine(
        "layers that are faster on a CPU, such as Winograd's convolutions", for_cpu, place=CPU
    ),
    "int8": Engine(
        "large layers of denoisers and ControlNets in 8 bits: faster, almost the same picture",
        for_int8,
        lambda: "" if probe.int8_is_faster() else "8-bit integers are not faster here",
        place=CPU,
    ),
    "openvino": Engine(
        "denoisers and ControlNets converted by OpenVINO (an extra), once a shape of inputs",
        for_openvino,
        conversion.missing,
        place=CPU,
        at_first="OpenVINO converts and compiles the model for this size",
    ),
    "compile": Engine(
        "denoisers and ControlNets compiled by torch.compile, once a shape of inputs: for GPUs",
        for_compile,
        compiled.missing,
        at_first="torch.compile compiles the model for this size",
    ),
    GPU: Engine(
        "keys and values of a text computed once, on a GPU",
        for_gpu,
        lambda: "" if torch.accelerator.is_available() else "there is no GPU",
        place=GPU,
    ),
    "fp8": Engine(
        "compiled, with transformers in 8-bit floating point: almost the same picture, on new GPUs",
        for_fp8,
        fp8.missing,
        place=GPU,
        at_first="torch.compile compiles the model for this size",
    ),
}


class Prepared:
    """Networks as one engine computes them, each prepared once and kept as long as the network."""

    def __init__(self, name: str, otherwise: str = PLAIN) -> None:
        """otherwise: the engine of networks for which this one has nothing to offer.

        Raises UndustError for an unknown engine.
        """
        if name not in ENGINES:
            raise unknown("engine", name, [AUTO, *ENGINES])
        self.name, self._otherwise = name, otherwise
        self._known: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()

    def __call__(self, network: N) -> N:
        """The prepared network."""
        known = self._known.get(network)
        if known is None:
            made = (ENGINES[name].prepare(network) for name in (self.name, self._otherwise))
            known = next((each for each in made if each is not network), network)
            if known is not network:  # as a value it would keep itself alive
                self._known[network] = known
        return cast("N", known)

    def gains(self, networks: Iterable[nn.Module]) -> bool:
        """Whether it has something to offer for one of them."""
        return any(self(network) is not network for network in networks)


def chosen(name: str, networks: Iterable[nn.Module], device: torch.device) -> Prepared:
    """The engine of that name for networks on a device; for "auto" the fastest exact one.

    If it cannot be used, or has nothing to offer, the exact one of the device, or else "torch",
    with a RuntimeWarning if another one was asked for. Raises UndustError for an unknown one.
    """
    place = CPU if device.type == "cpu" else GPU
    asked = Prepared(place if name == AUTO else name, otherwise=place)
    if place == CPU:
        keep_freed_memory()
    if asked.name == PLAIN:
        return Prepared(PLAIN)
    reason = _reason(asked.name, place)
    networks, usable = [*networks], [Prepared(place)] if reason else [asked, Prepared(place)]
    found = next((each for each in usable if each.gains(networks)), Prepared(PLAIN))
    if name not in (AUTO, found.name):
        reason = reason or "it has nothing to offer for this model"
        note = f"the engine {name} is not used: {reason}; {found.name} takes its place"
        warnings.warn(note, RuntimeWarning, stacklevel=2)
    return found


def _reason(name: str, place: str) -> str:
    """Why an engine cannot be used on a kind of device, "" if it can."""
    engine = ENGINES[name]
    if engine.place not in ("", place):
        return f"it is for {engine.place.upper()}s, and the model is on a {place.upper()}"
    return "" if name == place else engine.missing()
