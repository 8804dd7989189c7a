"""Networks with LoRAs applied, as copies that share all weights that no LoRA changes.

The networks themselves never change, so that requests with different LoRAs, in turn or in several
threads, do not affect each other.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from undust.adapters.lora import apply, apply_low_rank, delta, low_rank
from undust.adapters.offload import Lock
from undust.errors import UndustError
from undust.formats.lora.factors import Product
from undust.formats.lora.file import Lora, WeightDelta
from undust.formats.lora.names import Target
from undust.networks.stored import computes_in

ActiveLoras = tuple[tuple[Lora, float], ...]
"""LoRAs with their weights: 1 as trained, 0 without effect."""
Changes = list[tuple[WeightDelta, float]]
N = TypeVar("N", bound=nn.Module)
Added = Callable[[Tensor], Tensor]
"""A module's input → what a LoRA adds to its output."""


class Networks(dict[str, nn.Module]):
    """Networks by the names of a model folder's parts."""


class LoraSet:
    """The networks of a model with any LoRAs.

    A LoRA of weight w adds w·ΔW to the original weights; the order of several makes no difference,
    not even in rounding. networks: by the names that LoRAs were loaded for; merge: into copies of
    the changed weights, at no cost per step; otherwise the changes are added to the modules'
    outputs, where another w costs nothing; before: called before weights are read. May be used by
    several threads.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        *,
        merge: bool = True,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        self._networks, self._merge, self._before = networks, merge, before
        self._lock = Lock()
        self._in_use: WeakValueDictionary[ActiveLoras, Networks] = WeakValueDictionary()
        self._latest: Networks | None = None  # so that the next request with it finds it
        self._ready: dict[tuple[Lora, Target], Added] = {}

    def applied(self, loras: Iterable[tuple[Lora, float]]) -> Mapping[str, nn.Module]:
        """The networks with these LoRAs; without LoRAs the networks themselves.

        A result is cached while it is in use, the latest until the next one is made. Raises
        UndustError for a weight that is not finite.
        """
        active = checked(loras)
        if not active:
            return self._networks
        with self._lock:
            found = self._in_use.get(active)
            if found is None:
                self._latest = None  # its memory is free for the next, unless it is in use
                self._before()
                # Tensors of inference mode could not be changed or saved later.
                with torch.inference_mode(False), torch.no_grad():
                    found = self._in_use[active] = self._made(active)
            self._latest = found
            return found

    def _made(self, active: ActiveLoras) -> Networks:
        networks = Networks(self._networks)
        ready, self._ready = self._ready, {}
        for target, changes in by_module(active).items():
            if networks[target.part] is self._networks[target.part]:
                networks[target.part] = shared(self._networks[target.part])
            module = networks[target.part].get_submodule(target.module)
            original = self._networks[target.part].get_submodule(target.module)
            if self._merge:
                for kind, value in merged(module, changes).items():
                    own = module.get_parameter(kind).requires_grad
                    setattr(module, kind, nn.Parameter(value, own))
                continue
            runs: list[tuple[Added, float]] = []
            for lora, weight in active:
                if change := lora.changes.get(target.part, {}).get(target.module):
                    run = ready.get((lora, target)) or _runnable(original, change)
                    self._ready[lora, target] = run
                    runs.append((run, weight))
            module.register_forward_hook(_hook(runs))
        return networks


def checked(loras: Iterable[tuple[Lora, float]]) -> ActiveLoras:
    """LoRAs of a weight other than 0, in a canonical order.

    Raises UndustError for a weight that is not finite.
    """
    loras = list(loras)
    for lora, weight in loras:
        if not math.isfinite(weight):
            raise UndustError(
                f"the weight of the LoRA {lora.name} is {weight}, not a finite number"
            )
    effective = (each for each in loras if each[1])
    return tuple(sorted(effective, key=lambda each: (each[0].hash, each[1])))


def merge(networks: Mapping[str, nn.Module], loras: Iterable[tuple[Lora, float]]) -> None:
    """Merges LoRAs into the weights of the networks, in place."""
    with torch.no_grad():
        for target, changes in by_module(checked(loras)).items():
            module = networks[target.part].get_submodule(target.module)
            for kind, value in merged(module, changes).items():
                module.get_parameter(kind).data = value


def by_module(active: ActiveLoras) -> dict[Target, Changes]:
    """The changes of each module, with their weights."""
    found: defaultdict[Target, Changes] = defaultdict(list)
    for lora, weight in active:
        for part, changes in lora.changes.items():
            for module, change in changes.items():
                found[Target(part, module)].append((change, weight))
    return found


def merged(module: nn.Module, changes: Changes) -> dict[str, Tensor]:
    """The changed weight and bias, in the dtype of the module and their own memory format."""
    values: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        own = [(change, weight) for change, weight in changes if _changes(change, kind)]
        if not own:
            continue
        original = module.get_parameter(kind).data
        wide = _wide(original)
        total = wide.clone()
        for change, weight in own:
            if kind == "weight":
                total.add_(delta(change, wide), alpha=weight)
            elif change.bias is not None:
                total.add_(change.bias.to(wide), alpha=weight)
        values[kind] = torch.empty_like(original, dtype=computes_in(module)).copy_(total)
    return values


def shared(network: N) -> N:
    """A copy of the modules that shares all weights and buffers."""
    known: dict[int, Any] = {
        id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())
    }
    # A module has a dozen containers, mostly empty ones of hooks, which deepcopy is slowest with.
    for module in network.modules():
        for value in vars(module).values():
            if type(value) in (dict, OrderedDict, set) and not value:
                known[id(value)] = type(value)()
    return copy.deepcopy(network, known)


def hooked(network: nn.Module) -> bool:
    """Whether a LoRA that is not merged adds to the output of a layer in it."""
    return any(layer._forward_hooks for layer in network.modules())  # pyright: ignore[reportPrivateUsage]


def _changes(change: WeightDelta, kind: str) -> bool:
    if kind == "bias":
        return change.bias is not None
    return change.weight is not None or change.magnitude is not None


def _wide(tensor: Tensor) -> Tensor:
    """In the dtype to compute in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _runnable(module: nn.Module, change: WeightDelta) -> Added:
    """The addition of a change to a module's output at weight 1, in low rank where possible."""
    own = module.get_parameter("weight").detach()
    wide, own = _wide(own), own.to(computes_in(module))
    bias = None if change.bias is None else change.bias.to(own)
    if isinstance(change.weight, Product) and change.magnitude is None and bias is None:
        up, down = low_rank(change.weight, wide)
        factors = _Following([(change.scale * up).to(own), down.to(own)])
        return lambda x: apply_low_rank(module, x, *factors(x))
    weight = delta(change, wide).to(own)
    added = _Following([weight] if bias is None else [weight, bias])
    return lambda x: apply(module, x, *added(x))


class _Following:
    """Tensors that follow the device and dtype of a module's input."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors

    def __call__(self, x: Tensor) -> list[Tensor]:
        with torch.inference_mode(False):
            self._tensors = [tensor.to(x.device, x.dtype) for tensor in self._tensors]
        return self._tensors


def _hook(
    runs: list[tuple[Added, float]],
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def add(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        for run, weight in runs:
            output = output + weight * run(inputs[0])
        return output

    return add
