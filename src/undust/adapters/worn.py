"""LoRAs on a model: any set of them put on, changed and taken off, the model being as before."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from undust.adapters.lora import apply, apply_low_rank, delta, low_rank
from undust.errors import UndustError
from undust.formats.lora.factors import Product
from undust.formats.lora.file import Change, Lora
from undust.formats.lora.names import Target

Outfit = tuple[tuple[Lora, float], ...]
"""LoRAs and how strongly each is worn: 1 as it was trained, 0 not at all."""


class Worn(ABC):
    """What a model wears; `networks` are its parts by the names that LoRAs were loaded for.

    A weight w adds w times what the LoRA adds to the model without any: the order in which several
    are put on makes no difference, not even in rounding. `before` is called before anything of the
    networks is changed.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], before: Callable[[], object] = lambda: None
    ) -> None:
        self._networks = dict(networks)
        self._before = before
        self._outfit: Outfit = ()

    @property
    def outfit(self) -> Outfit:
        """What is worn now, without what has weight 0, in an order of its own."""
        return self._outfit

    def wear(self, loras: Iterable[tuple[Lora, float]]) -> None:
        """Wears these in the place of what is worn; () takes all off.

        Nothing is done where nothing changes. If it fails, nothing is worn. Raises UndustError for
        a weight that is no finite number.
        """
        loras = list(loras)
        for lora, weight in loras:
            if not math.isfinite(weight):
                raise UndustError(f"the weight of the LoRA {lora.name} is {weight}, no number")
        wanted = [(lora, weight) for lora, weight in loras if weight]
        outfit = tuple(sorted(wanted, key=lambda worn: (worn[0].hash, worn[1])))
        if outfit == self._outfit:
            return
        self._before()
        # What is made here stays; tensors of inference mode could not be changed later.
        with torch.inference_mode(False), torch.no_grad():
            try:
                self._change(outfit)
            except BaseException:
                self._change(())
                self._outfit = ()
                raise
        self._outfit = outfit

    @abstractmethod
    def _change(self, outfit: Outfit) -> None:
        """Makes the networks wear the outfit, and it alone."""

    def _module(self, place: Target) -> nn.Module:
        return self._networks[place.part].get_submodule(place.module)


class Merged(Worn):
    """Added to the weights themselves: no cost per step.

    The weights as they were are kept aside and put back, never computed back; those of a file are
    pages of that file and take no memory.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], before: Callable[[], object] = lambda: None
    ) -> None:
        super().__init__(networks, before)
        self._originals: dict[tuple[Target, str], Tensor] = {}

    def _change(self, outfit: Outfit) -> None:
        changes: defaultdict[Target, list[tuple[Change, float]]] = defaultdict(list)
        for lora, weight in outfit:
            for place, change in _places(lora):
                changes[place].append((change, weight))
        # What is no longer changed first, so that its memory is free for what is.
        for place, kind in [key for key in self._originals if key[0] not in changes]:
            self._put(place, kind, [])
        for place, worn in changes.items():
            self._put(place, "weight", [pair for pair in worn if _changes_weight(pair[0])])
            self._put(place, "bias", [pair for pair in worn if pair[0].bias is not None])

    def _put(self, place: Target, kind: str, worn: list[tuple[Change, float]]) -> None:
        """Gives a module's weight or bias these changes, and no others."""
        key = (place, kind)
        if not worn and key not in self._originals:
            return
        parameter = self._module(place).get_parameter(kind)
        original = self._originals.get(key, parameter.data)
        if worn:
            # On the parameter's device: the model may have been moved since.
            changed = _changed(original.to(parameter), kind, worn)
            self._originals[key] = original
            parameter.data = changed
        else:
            parameter.data = original.to(parameter)
            del self._originals[key]


class Live(Worn):
    """Added to what the modules give: the weights stay untouched, and a weight is changed for free.

    LoRAs of low rank are run as such, others as the matrix that they are.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], before: Callable[[], object] = lambda: None
    ) -> None:
        super().__init__(networks, before)
        self._hooks: list[RemovableHandle] = []
        self._ready: dict[tuple[Lora, Target], Added] = {}

    def _change(self, outfit: Outfit) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        ready, self._ready = self._ready, {}
        added: defaultdict[Target, list[tuple[Added, float]]] = defaultdict(list)
        for lora, weight in outfit:
            for place, change in _places(lora):
                run = ready.get((lora, place)) or _runnable(self._module(place), change)
                self._ready[lora, place] = run
                added[place].append((run, weight))
        for place, worn in added.items():
            self._hooks.append(self._module(place).register_forward_hook(_hook(worn)))


Added = Callable[[Tensor], Tensor]
"""A module's input → what a change adds to its output."""


def _places(lora: Lora) -> Iterable[tuple[Target, Change]]:
    for part, changes in lora.changes.items():
        for module, change in changes.items():
            yield Target(part, module), change


def _changes_weight(change: Change) -> bool:
    return change.weight is not None or change.magnitude is not None


def _wide(tensor: Tensor) -> Tensor:
    """In the precision to compute in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _changed(original: Tensor, kind: str, worn: list[tuple[Change, float]]) -> Tensor:
    """The weight or bias with its changes, in its own precision and memory format."""
    wide = _wide(original)
    total = wide.clone()
    for change, weight in worn:
        if kind == "weight":
            total.add_(delta(change, wide), alpha=weight)
        elif change.bias is not None:
            total.add_(change.bias.to(wide), alpha=weight)
    return torch.empty_like(original).copy_(total)


def _runnable(module: nn.Module, change: Change) -> Added:
    """What the change adds to the output of a module, worn with weight 1."""
    own = module.get_parameter("weight").detach()
    wide = _wide(own)
    bias = None if change.bias is None else change.bias.to(own)
    if isinstance(change.weight, Product) and change.magnitude is None and bias is None:
        up, down = low_rank(change.weight, wide)
        factors = _Following([(change.scale * up).to(own), down.to(own)])
        return lambda x: apply_low_rank(module, x, *factors(x))
    weight = delta(change, wide).to(own)
    added = _Following([weight] if bias is None else [weight, bias])
    return lambda x: apply(module, x, *added(x))


class _Following:
    """Tensors that go where a module is asked, and stay there until it is asked elsewhere."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors

    def __call__(self, x: Tensor) -> list[Tensor]:
        with torch.inference_mode(False):
            self._tensors = [tensor.to(x.device, x.dtype) for tensor in self._tensors]
        return self._tensors


def _hook(
    worn: list[tuple[Added, float]],
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def add(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        for run, weight in worn:
            output = output + weight * run(inputs[0])
        return output

    return add
