"""Conversion and compilation of networks by OpenVINO, an optional package."""

from __future__ import annotations

import copy
import importlib.util
import sys
import threading
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undust.errors import first_line
from undust.networks.conditioning import Conditioning
from undust.networks.stored import WIDE, computes_in

PACKAGE, TELEMETRY = "openvino", "openvino_telemetry"
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
"""What a network of each dtype is computed in, as OpenVINO calls it."""
CONTROL = "control."
WAVES = ("Sin", "Cos")
_IMPORTING = threading.Lock()

Inputs = dict[str, Tensor]
"""A network's inputs by name: float32, labels int64."""


def missing() -> str:
    """Why OpenVINO cannot be used here, "" if it can."""
    if importlib.util.find_spec(PACKAGE) is None:
        return "OpenVINO is not installed: pip install 'undust[openvino]'"
    try:
        imported()
    except Exception as error:  # whatever a library that does not fit the system raises
        return f"OpenVINO cannot be imported: {first_line(error)}"
    return ""


def imported() -> Any:
    """The package `openvino`, without its telemetry.

    It would report its import and each conversion to Google Analytics, unasked, and make files in
    the home folder. Where `openvino_telemetry` cannot be imported it does without.
    """
    with _IMPORTING:
        known = sys.modules.get(TELEMETRY)
        sys.modules[TELEMETRY] = None  # pyright: ignore[reportArgumentType]
        try:
            import openvino
            from openvino.tools.ovc import convert_impl, telemetry_stub, telemetry_utils
        finally:
            del sys.modules[TELEMETRY]
            if known is not None:
                sys.modules[TELEMETRY] = known
        convert_impl.tm = telemetry_utils.tm = telemetry_stub  # if it was imported before
    return openvino


def named_inputs(
    x: Tensor,
    timestep: Tensor,
    cond: Conditioning,
    hint: Tensor | None = None,
    control: Sequence[Tensor] = (),
) -> Inputs:
    """The inputs of a denoiser or ControlNet by name, in this order."""
    given = {"x": x, "timestep": timestep, **cond.tensors()}
    given.pop("negative", None)  # no network reads it
    if hint is not None:
        given["hint"] = hint
    given |= {f"{CONTROL}{number}": part for number, part in enumerate(control)}
    return {name: _plain(tensor) for name, tensor in given.items()}


def converted(network: nn.Module, inputs: Inputs) -> Any:
    """The `openvino.Model` of a network for inputs of these shapes, in float32.

    Raises the network's UndustError for inputs that it does not take, and other exceptions where it
    cannot be converted.
    """
    openvino = imported()
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: shapes become constants, as they should
        if computes_in(network) != WIDE:
            network = copy.deepcopy(network).to(WIDE)
        examples = tuple(torch.zeros_like(tensor) for tensor in inputs.values())
        traced = torch.jit.trace(_OfTensors(network, [*inputs]), examples, check_trace=False)
        model = openvino.convert_model(traced, example_input=examples)
    shapes = (list(tensor.shape) for tensor in examples)
    model.reshape(dict(zip(model.inputs, shapes, strict=True)))
    return model


def save(model: Any, path: Path) -> None:
    """Writes an `openvino.Model` to path.xml and path.bin; RuntimeError if that fails."""
    imported().save_model(model, path, compress_to_fp16=False)


class Compiled:
    """A network for a CPU and inputs of fixed shapes; one call at a time."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        """model: an `openvino.Model` or the path of one; dtype: that the network computes in.

        Raises RuntimeError for a file that is damaged and a model that cannot be compiled.
        """
        core = _core()
        if isinstance(model, Path):
            model = core.read_model(model)
        waves = None if dtype == WIDE else _cut_waves(model)
        self._waves = None if waves is None else _request(core, waves, WIDE)
        self._network = _request(core, model, dtype)

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        """The outputs, in float32."""
        arrays = [tensor.detach().contiguous().numpy() for tensor in inputs.values()]
        if self._waves is not None:
            arrays += self._waves.infer(arrays, share_inputs=True).to_tuple()
        found = self._network.infer(arrays, share_inputs=True).to_tuple()
        return [torch.from_numpy(output) for output in found]


@cache
def _core() -> Any:
    """OpenVINO's `Core`, one for the process, which never ends.

    Its CPU plugin gives the thread another stack for signals and frees it when it is unloaded; the
    next Ctrl-C would be a segmentation fault (2026.4.1).
    """
    return imported().Core()


def _request(core: Any, model: Any, dtype: torch.dtype) -> Any:
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # Threads of several processes would be bound to the same cores.
        "ENABLE_CPU_PINNING": False,
    }
    return core.compile_model(model, "CPU", hints).create_infer_request()


def _cut_waves(model: Any) -> Any:
    """Makes the sines and cosines in a model further inputs; returns the model of them.

    In bfloat16 OpenVINO would round their angles too: 999 to 1000, which is one radian more.
    """
    openvino = imported()
    waves = [op.output(0) for op in model.get_ordered_ops() if op.get_type_name() in WAVES]
    first = openvino.Model(waves, model.get_parameters()).clone()
    for wave in waves:
        given = openvino.opset13.parameter(wave.get_shape(), wave.get_element_type())
        wave.replace(given.output(0))
        model.add_parameters([given])
    return first


class _OfTensors(nn.Module):
    """A denoiser or ControlNet as a function of tensors, for tracing; names: of its inputs."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """`named_inputs` → the output, or those of a ControlNet."""
        fields = dict(zip(self.names, tensors, strict=True))
        x, timestep, hint = fields.pop("x"), fields.pop("timestep"), fields.pop("hint", None)
        control = [fields.pop(name) for name in self.names if name.startswith(CONTROL)]
        cond = Conditioning(len(x), **fields)
        if hint is not None:
            return tuple(self.network(x, timestep, cond, hint))
        return self.network(x, timestep, cond, control=control)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.to(WIDE if tensor.is_floating_point() else torch.int64)
