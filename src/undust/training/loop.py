"""The one training loop.

A `Task` has the modules, the loss of a batch and the model folder; the loop does the rest:
gradients, averaged weights, checkpoints, logs, previews, and stopping on request.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from undust.errors import UndustError
from undust.formats.files import workspace
from undust.formats.locks import FileLock
from undust.training import checkpoints
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.configs import TrainingConfig
from undust.training.data import Batch
from undust.training.ema import Ema
from undust.training.log import Log
from undust.training.optimizers import Optimizers
from undust.training.task import Task


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a run after a step; samples: seen so far; seconds: that the step took."""

    step: int
    steps: int
    samples: int
    losses: dict[str, float]
    seconds: float


class Trainer:
    """One run in one folder: from its newest checkpoint, or from the start, to its last step.

    lock: kept until `train` ends.
    """

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        out: Path,
        lock: FileLock | None = None,
    ) -> None:
        self.task, self.config, self.run = task, config, config.run
        self.out, self._lock = out, lock
        self.step = 0
        self.parameters = dict(task.modules.named_parameters())
        self.ema = Ema(self.parameters, self.run.ema)
        self.optimizers = Optimizers(
            self.parameters, config.optimizer, half=self.run.muon_precision != "fp32"
        )

    def resume(self, checkpoint: TrainingCheckpoint) -> None:
        """Continues from a checkpoint. Raises UndustError for one of other tensors."""
        if set(checkpoint.weights) != set(self.parameters) or any(
            checkpoint.weights[name].shape != value.shape for name, value in self.parameters.items()
        ):
            raise UndustError(
                f"the checkpoints in {self.out} are of another network than the recipe's; "
                "choose another --out, or train without --resume in an empty one"
            )
        self.step = checkpoint.step
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(checkpoint.weights[name])
        self.ema.load(dict(checkpoint.average))
        try:
            self.optimizers.load(checkpoint.optimizer, checkpoint.step)
        except KeyError as error:
            raise UndustError(f"{self.out}: the newest checkpoint has no {error}") from error

    def rehearse(self) -> None:
        """One step, save and preview with the least work; nothing is kept.

        Raises UndustError for a fault that would end the run at its first save or preview.
        """
        with workspace(self.out / "model", self.out) as folder, torch.random.fork_rng(devices=[]):
            self._losses(self.task.order.batch(self.step, 1))["loss"].backward()
            for parameter in self.parameters.values():
                parameter.grad = None
            with self._averaged():
                self.task.publish(folder / "new", brief=True)
                self.task.preview(brief=True)

    def train(self, observe: Callable[[TrainingProgress], None]) -> bool:
        """Runs to the last step; False if Ctrl-C or SIGTERM stopped it (the state is saved then).

        Raises UndustError if the folder is removed or moved meanwhile.
        """
        try:
            with _folder_kept(self.out) as check, _stop_requested() as requested:
                return self._train(observe, check, requested)
        finally:
            if self._lock:
                self._lock.release()

    def _train(
        self,
        observe: Callable[[TrainingProgress], None],
        check: Callable[[], None],
        requested: Callable[[], bool],
    ) -> bool:
        if self.step >= self.run.steps and not (self.out / "model").is_dir():
            self.save()  # it was removed
        with Log(self.out, self.step) as log:
            while self.step < self.run.steps:
                began = time.monotonic()
                losses = self._step()
                check()
                progress = TrainingProgress(
                    self.step,
                    self.run.steps,
                    self.step * self.run.batch,
                    losses,
                    time.monotonic() - began,
                )
                observe(progress)
                last = self.step == self.run.steps
                if last or self.step % self.run.log_every == 0:
                    rate = self.config.optimizer.rate(self.step - 1, self.run.steps)
                    log.scalars(self.step, {**losses, "learning_rate": rate}, progress.seconds)
                if last or self.step % self.run.sample_every == 0:
                    with self._averaged():
                        log.picture(self.step, self.task.preview(), self.task.captions)
                if last or requested() or self.step % self.run.checkpoint_every == 0:
                    self.save()
                if requested():
                    return False
        return True

    def save(self) -> Path:
        """Publishes the averaged weights as the model folder `out/model`, and a checkpoint.

        The checkpoint comes last: a run that is killed in between does all of this again.
        """
        with self._averaged():
            self.task.publish(self.out / "model")
        weights = {name: value.detach() for name, value in self.parameters.items()}
        state = TrainingCheckpoint(
            self.step,
            self.config.model_dump(mode="json"),
            weights,
            self.ema.average,
            self.optimizers.moments(),
            self.task.inputs,
            self.task.tokenizer,
        )
        return checkpoints.save(self.out / "checkpoints", state, self.run.keep)

    def _step(self) -> dict[str, float]:
        """One update; the step's losses. Raises UndustError before a NaN reaches the weights."""
        batch = self.task.order.batch(self.step, self.run.batch)
        for parameter in self.parameters.values():
            parameter.grad = None
        losses = self._losses(batch)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.optimizer.clip)
        values = {name: float(value.detach()) for name, value in losses.items()}
        values["gradient_norm"] = float(norm)
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            folder = self.out / "checkpoints"
            kept = any(folder.glob("step-*"))
            last = f"the last good checkpoint is in {folder}" if kept else "no checkpoint was made"
            raise UndustError(
                f"step {self.step + 1}: {' and '.join(broken)} not finite; the weights were left "
                f"as they were, {last}; a lower optimizer.learning_rate or "
                "run.precision=fp32 may help"
            )
        self.optimizers.step(self.config.optimizer.rate(self.step, self.run.steps))
        self.ema.update(self.step)
        self.step += 1
        return values

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        half = self.run.precision == "bf16"
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return self.task.losses(batch)

    @contextmanager
    def _averaged(self) -> Generator[None]:
        """Within it the modules hold the averaged weights, in evaluation mode."""
        self.ema.swap()
        self.task.modules.eval()
        try:
            yield
        finally:
            self.task.modules.train()
            self.ema.swap()


@contextmanager
def _folder_kept(folder: Path) -> Generator[Callable[[], None]]:
    """Yields a check that a folder was not moved or removed; OSErrors within are explained so."""
    original = folder.stat()

    def check() -> None:
        with suppress(FileNotFoundError):
            if os.path.samestat(original, folder.stat()):
                return
        raise UndustError(
            f"{folder} was moved or removed while a run trained in it; if it was moved, --resume "
            "with its new path as --out continues from its newest checkpoint"
        )

    try:
        yield check
    except (OSError, UndustError):
        check()
        raise


@contextmanager
def _stop_requested() -> Generator[Callable[[], bool]]:
    """Yields whether a stop was requested: the first Ctrl-C or SIGTERM lets the step finish."""
    requested = False

    def request(number: int, _frame: FrameType | None) -> None:
        nonlocal requested
        if requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        requested = True

    held = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
