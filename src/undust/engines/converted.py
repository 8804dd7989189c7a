"""Networks that OpenVINO computes, at their first call with inputs of some shapes converted."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from undust.adapters import token_merging
from undust.adapters.applied_loras import hooked, shared
from undust.adapters.offload import Lock
from undust.engines import conversion, conversion_cache
from undust.engines.conversion import Compiled, Inputs
from undust.engines.cpu import for_cpu
from undust.engines.weights import HashedWeights
from undust.errors import UndustError, first_line
from undust.networks.attention import Perturbation
from undust.networks.base import DenoiserNetwork
from undust.networks.conditioning import Conditioning
from undust.networks.deep_cache import DeepFeatures
from undust.networks.stored import computes_in
from undust.networks.unet import UNetEncoder
from undust.version import __version__

KEPT = 3  # compiled forms of a network in memory, each as large as its weights
N = TypeVar("N", bound=nn.Module)


def for_openvino(network: N) -> N:
    """A copy of a denoiser or ControlNet that OpenVINO computes; it shares the weights.

    The network itself if it is another one, not on a CPU, in another precision than float32 and
    bfloat16, merges tokens, or has a LoRA that is not merged, whose weight may change at any time.
    """
    if not _can_convert(network):
        return network
    fast = for_cpu(network)
    copied = cast("Any", shared(network) if fast is network else fast)
    # Not of the network itself, which is a key of `Prepared`'s weak dictionary; this is its value.
    copied.conversions = Conversions(shared(network))
    copied.__class__ = _converted_class(type(network))  # it keeps weights and layers
    return copied


class Conversions:
    """The compiled forms of one network, by the shapes of its inputs.

    classes: the number of its classes, 0 without any. Several threads may use it.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network, self._dtype = network, computes_in(network)
        self._weights = HashedWeights(network)
        self._compiled: dict[str, Compiled] = {}  # the latest last
        self._lock, self._failed = Lock(), False
        tables = (table for table in network.modules() if isinstance(table, nn.Embedding))
        self.classes = next((table.num_embeddings for table in tables), 0)

    def __call__(self, inputs: Inputs) -> list[Tensor] | None:
        """The outputs; None, from the first failure on, where OpenVINO fails.

        The first failure is a RuntimeWarning. Raises the network's UndustError for inputs that it
        does not take.
        """
        with self._lock:
            if self._failed:
                return None
            try:
                return self._for(inputs)(inputs)
            except UndustError:
                raise
            except Exception as error:
                self._failed = True
                self._compiled.clear()
                note = f"the engine openvino fails: {first_line(error)}; cpu takes its place"
                warnings.warn(note, RuntimeWarning, stacklevel=2)
                return None

    def _for(self, inputs: Inputs) -> Compiled:
        """For the shapes of these inputs."""
        key = self._key(inputs)
        found = self._compiled.pop(key, None)
        if found is None:
            for oldest in [*self._compiled][: 1 - KEPT]:
                del self._compiled[oldest]
            found = self._made(key, inputs)
        self._compiled[key] = found
        return found

    def _made(self, key: str, inputs: Inputs) -> Compiled:
        """From the disk, where it is written first if it is not there.

        The network as it was before writing may differ from it in rounding.
        """
        known = conversion_cache.find(key)
        if known is not None:
            with suppress(RuntimeError):
                return Compiled(known, self._dtype)
        model = conversion.converted(self._network, inputs)
        known = conversion_cache.keep(key, partial(conversion.save, model))
        if known is not None:
            with suppress(RuntimeError):
                return Compiled(known, self._dtype)
        return Compiled(model, self._dtype)

    def _key(self, inputs: Inputs) -> str:
        """The hash of everything that the converted network depends on."""
        network = self._network
        described = [
            *(__version__, torch.__version__, conversion.imported().__version__),
            *(type(network).__name__, repr(network.config), self._weights.hash, str(self._dtype)),
            [[name, str(tensor.dtype), *tensor.shape] for name, tensor in inputs.items()],
        ]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()


class Converted(nn.Module):
    """Before the class of a network: calls its compiled form where there can be one."""

    conversions: Conversions

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        cond: Conditioning,
        hint: Tensor | None = None,
        *,
        perturbed: Sequence[Perturbation | None] = (),
        control: Sequence[Tensor] = (),
        deep: DeepFeatures | None = None,
    ) -> Tensor | list[Tensor]:
        """As that of the network; only ControlNets have a hint."""
        inputs = conversion.named_inputs(x, timestep, cond, hint, control)
        if not any(perturbed) and deep is None and self._can_run(inputs):
            if cond.label is not None and self.conversions.classes:
                cond.labels(self.conversions.classes)  # tracing does not keep the check
            outputs = self.conversions(inputs)
            if outputs is not None:
                outputs = [output.to(x.dtype) for output in outputs]
                return outputs[0] if hint is None else outputs
        rest: dict[str, Any] = {"perturbed": perturbed, "control": control, "deep": deep}
        return super().forward(x, timestep, cond, **(rest if hint is None else {"hint": hint}))

    def _can_run(self, inputs: Inputs) -> bool:
        """Whether they are on a CPU, and no gradients are needed."""
        if any(tensor.device.type != "cpu" for tensor in inputs.values()):
            return False
        tensors = (*inputs.values(), *self.parameters()) if torch.is_grad_enabled() else ()
        return not any(tensor.requires_grad for tensor in tensors)


@cache
def _converted_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Converted{kind.__name__}", (Converted, kind), {})


def _can_convert(network: nn.Module) -> bool:
    return (
        isinstance(network, DenoiserNetwork | UNetEncoder)
        and computes_in(network) in conversion.PRECISIONS
        and not token_merging.merges(network)
        and next(network.parameters()).device.type == "cpu"
        and not hooked(network)
    )
