"""Losses and gradients of a step: in a precision, in parts, with less memory, compiled.

None of these choices changes the samples of a step or their random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from undust.engines.winograd import replace_convolutions
from undust.errors import UndustError
from undust.networks.conditioning import Conditioning
from undust.training.configs import RunConfig
from undust.training.data import Batch
from undust.training.task import Task

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def _compilation_explained() -> Generator[None]:
    """Errors of torch.compile in one line."""
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException  # importing it takes seconds

        if not isinstance(error, TorchDynamoException):
            raise
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())
        raise UndustError(
            f"torch.compile failed: {reason}; run.compile=false trains without it"
        ) from error


class Gradients:
    """The losses of a task's batches, and their gradients in its parameters.

    scale: of the loss in float16, else None.
    """

    def __init__(self, task: Task, run: RunConfig, device: torch.device) -> None:
        self.task, self.run, self.device = task, run, device
        self.scale = LossScale() if run.precision == "fp16" else None
        self._blocks = [*innermost_blocks(task.networks)] if run.checkpoint_activations else []
        for module in task.networks.values():
            if device.type != "cpu":
                module.register_forward_pre_hook(_moved, with_kwargs=True)
            if run.compile:
                module.compile()
            if run.convolutions == "winograd":
                replace_convolutions(module)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The task's losses, computed in the run's precision."""
        dtype = DTYPES.get(self.run.precision, torch.bfloat16)
        enabled = self.run.precision in DTYPES
        with torch.autocast(self.device.type, dtype, enabled=enabled), _recomputed(self._blocks):
            return self.task.losses(batch)

    def uncompiled(self) -> AbstractContextManager[object]:
        """Within it networks run as they are, so that shapes of few calls need no compilation."""
        return torch.compiler.set_stance("force_eager") if self.run.compile else nullcontext()

    @_compilation_explained()
    def backward(self, step: int, size: int) -> dict[str, float]:
        """Adds the gradients of a step's first `size` samples; their losses, means over these.

        With `run.accumulate` the samples are computed in so many parts, one after the other. Raises
        UndustError if torch.compile cannot compile a network.
        """
        first, parts = step * self.run.batch, min(self.run.accumulate, size)
        ends = [first + size * number // parts for number in range(parts + 1)]
        means: dict[str, float] = {}
        for start, end in pairwise(ends):
            share = (end - start) / size
            losses = self.losses(self.task.order.draws(range(start, end), step))
            loss = losses["loss"] * share if parts > 1 else losses["loss"]
            (loss * self.scale.value if self.scale else loss).backward()
            for name, value in losses.items():
                means[name] = means.get(name, 0.0) + share * float(value.detach())
        return means

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divides the gradients by the scale of the loss, if there is one."""
        gradients = [each.grad for each in parameters if each.grad is not None]
        if self.scale and gradients:
            torch._foreach_mul_(gradients, 1 / self.scale.value)  # pyright: ignore


class LossScale:
    """The factor of the loss that keeps small gradients in the range of float16.

    skipped: the number of steps whose update was left out.

    It doubles after `INTERVAL` steps with finite gradients, and halves after one without, whose
    update is left out (Micikevicius et al. 2018).
    """

    START, INTERVAL = 2.0**16, 2000

    def __init__(self) -> None:
        self.value, self.good, self.skipped = self.START, 0, 0

    def update(self, norms: Iterable[float]) -> bool:
        """Takes the gradients' norms of a step; whether they are finite, so that it counts."""
        finite = all(map(math.isfinite, norms))
        self.good = (self.good + 1) % self.INTERVAL if finite else 0
        if not finite:
            self.value /= 2
            self.skipped += 1
        elif not self.good:
            self.value *= 2
        return finite

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"value": self.value, "good": self.good, "skipped": self.skipped}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores the state of a checkpoint, if it has one."""
        self.value = float(state.get("value", self.START))
        self.good, self.skipped = int(state.get("good", 0)), int(state.get("skipped", 0))


def innermost_blocks(module: nn.Module) -> Iterable[nn.Module]:
    """The blocks in lists of modules that have no lists of blocks themselves, without buffers.

    Buffers may be statistics, which a second computation would update twice.
    """
    for child in module.modules():
        if isinstance(child, nn.ModuleList):
            for block in child:
                within = any(isinstance(inner, nn.ModuleList) for inner in block.modules())
                if not within and not any(True for _ in block.buffers()):
                    yield block


@contextmanager
def _recomputed(blocks: Iterable[nn.Module]) -> Generator[None]:
    """Within it the blocks keep their inputs alone, and compute again in the backward pass."""
    for block in blocks:
        forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = forward
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _moved(module: nn.Module, arguments: Any, options: Any) -> tuple[Any, Any]:
    """The inputs of a module on its device."""
    device = next(module.parameters()).device

    def to(value: Any) -> Any:
        if isinstance(value, Conditioning):
            return value.to(device, torch.float32)
        return value.to(device) if isinstance(value, Tensor) else value

    return tuple(map(to, arguments)), {name: to(value) for name, value in options.items()}
