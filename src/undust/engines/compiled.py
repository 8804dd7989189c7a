"""Networks compiled by torch.compile: fused kernels, above all for GPUs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from undust.adapters.applied_loras import hooked, shared
from undust.errors import first_line
from undust.formats.user_cache import cache_folder
from undust.networks.base import DenoiserNetwork
from undust.networks.deep_cache import DeepFeatures
from undust.networks.unet import UNetEncoder

GRAPHS: dict[str, str | int | bool | Callable[..., Any]] = {"triton.cudagraphs": True}
N = TypeVar("N", bound=nn.Module)


def missing() -> str:
    """Why nothing can be compiled here, "" if it can."""
    if torch.cuda.is_available() and importlib.util.find_spec("triton"):
        return ""
    compiler = os.environ.get("CXX") or "g++"
    found = shutil.which(compiler) or shutil.which("clang++")
    return "" if found else f"torch.compile needs a C++ compiler, and there is no {compiler}"


def for_compile(network: N) -> N:
    """A copy of a denoiser or ControlNet that torch.compile compiles; it shares the weights.

    Compilation takes place at the first call with inputs of some shapes. The network itself if it
    is another one, or has a LoRA that is not merged, whose weight may change at any time.
    """
    if not isinstance(network, DenoiserNetwork | UNetEncoder) or hooked(network):
        return network
    # Before torch reads it. Its own default is a folder for temporary files.
    if folder := cache_folder():
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "torch-compile"))
    copied = shared(network)
    cast("Any", copied).forward = _CompiledForward(copied.forward)
    return copied


class _CompiledForward:
    """The forward pass of a network, compiled for each shape of inputs.

    On a GPU the kernels of a call are recorded and started as one (CUDA graphs). From the first
    failure on, which is a RuntimeWarning, the network is computed by torch's layers.
    """

    def __init__(self, plain: Callable[..., Any]) -> None:
        self._plain, self._failed = plain, False
        self._compiled = torch.compile(plain, dynamic=False, options=GRAPHS)

    def __call__(
        self,
        *inputs: Any,
        perturbed: Sequence[object] = (),
        deep: DeepFeatures | None = None,
        **others: Any,
    ) -> Tensor | list[Tensor]:
        """As that of the network. Perturbations and deep features are computed by its layers."""
        if any(perturbed):
            others["perturbed"] = perturbed
        if deep is not None:
            others["deep"] = deep
        if self._failed or any(perturbed) or deep is not None:
            return self._plain(*inputs, **others)
        try:
            torch.compiler.cudagraph_mark_step_begin()
            output = self._compiled(*inputs, **others)
            # The next call writes its results to the same place.
            return (
                output.clone() if isinstance(output, Tensor) else [each.clone() for each in output]
            )
        except torch.OutOfMemoryError:
            raise  # room is made, and the call is made again
        except Exception as error:
            output = self._plain(*inputs, **others)  # or the network's own error
            self._failed = True
            note = f"the engine compile fails: {first_line(error)}; torch takes its place"
            warnings.warn(note, RuntimeWarning, stacklevel=2)
            return output
