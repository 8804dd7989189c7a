"""The one training loop.

A `Task` has the modules, the loss of a batch and the model folder; the loop does the rest:
gradients, averaged weights, checkpoints, logs, previews, and stopping on request.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from undust.engines.memory import keep_freed_memory
from undust.errors import UndustError
from undust.formats.files import workspace
from undust.formats.locks import FileLock
from undust.training import checkpoints, record
from undust.training.averaging import PowerAverages, remove_later, save_snapshot
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.configs import OptimizerConfig
from undust.training.ema import Ema, exchange
from undust.training.gradients import Gradients
from undust.training.log import Log
from undust.training.optimizers import Optimizers
from undust.training.task import Task, TrainingConfig
from undust.training.validation import ValidationHistory, validate

RECENT_STEPS = 100  # whose mean losses are diagnosed


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a run after a step.

    seconds: that the step took; validation: the newest validation loss, if there is one; notes: for
    people, on the training; preview: the path of this step's, if any.
    """

    step: int
    steps: int
    losses: dict[str, float]
    seconds: float
    validation: float | None
    notes: Sequence[str]
    preview: Path | None


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
        self.device = self.run.place
        if self.device.type == "cpu":
            keep_freed_memory()
        task.modules.to(self.device)
        task.networks.to(self.device)
        self.parameters = dict(task.modules.named_parameters())
        self.buffers = persistent_buffers(task.modules)
        self.ema = Ema(self.parameters, self.run.ema)
        self.profiles = PowerAverages(self.parameters) if self.run.snapshot_every else None
        self.gradients = Gradients(task, self.run, self.device)
        half = self.run.muon_precision != "fp32"
        self.optimizers = {
            name: Optimizers(parameters, settings, half=half)
            for name, settings, parameters in self._optimized()
        }
        self._networks = None
        if config.figures.every:
            self._networks = config.figures.networks().to(self.device)
            task.notes += self._networks.notes
            self._figures = task.figures(config.figures, self._networks)
        self.history = ValidationHistory(self.run.patience)
        self.best: dict[str, Tensor] = {}
        self._validated: float | None = None
        self._recent: deque[Mapping[str, float]] = deque(maxlen=RECENT_STEPS)
        self._told: set[str] = set()

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the validation loss has not fallen for long enough."""
        return self.step >= self.run.steps or self.history.exhausted

    def resume(self, checkpoint: TrainingCheckpoint) -> None:
        """Continues from a checkpoint. Raises UndustError for one of other tensors."""
        weights = self._weights()
        if set(checkpoint.weights) != set(weights) or any(
            checkpoint.weights[name].shape != value.shape for name, value in weights.items()
        ):
            raise UndustError(
                f"the checkpoints in {self.out} are of another network than the recipe's; "
                "choose another --out, or train without --resume in an empty one"
            )
        self.step = checkpoint.step
        with torch.no_grad():
            for name, value in weights.items():
                value.copy_(checkpoint.weights[name])
        self.ema.load(dict(checkpoint.average))
        updates = checkpoint.step - int(checkpoint.loss_scale.get("skipped", 0))
        try:
            for optimizer in self.optimizers.values():
                optimizer.load(checkpoint.optimizer, updates)
            if self.profiles:
                self.profiles.load(checkpoint.profiles)
        except KeyError as error:
            raise UndustError(f"{self.out}: the newest checkpoint has no {error}") from error
        if self.gradients.scale:
            self.gradients.scale.load(checkpoint.loss_scale)
        same = checkpoint.inputs.get("validation") == self.task.inputs.get("validation")
        if same and (checkpoint.best or not self.run.patience):
            self.history.load(checkpoint.validation)
            self.best = dict(checkpoint.best) if self.run.patience else {}

    def rehearse(self) -> None:
        """One step, save, preview and figures with the least work; nothing is kept.

        Raises UndustError for a fault that would end the run at the first of these.
        """
        with (
            workspace(self.out / "model", self.out) as folder,
            torch.random.fork_rng(devices=[]),
            self.gradients.uncompiled(),
        ):
            before = {name: value.clone() for name, value in self._weights().items()}
            few = min(2, self.run.batch)
            self.gradients.backward(self.step, few)
            for parameter in self.parameters.values():
                parameter.grad = None
            for name, value in self._weights().items():
                value.copy_(before[name])
            with self._averaged():
                self.task.publish(folder / "new", brief=True)
                self.task.preview(brief=True)
                if self._networks:
                    self.task.figures(self.config.figures.brief, self._networks)()

    def train(self, observe: Callable[[TrainingProgress], None]) -> bool:
        """Runs to the end; False if Ctrl-C or SIGTERM stopped it (the state is saved then).

        Raises UndustError if the folder is removed or moved meanwhile.
        """
        recording = nullcontext() if self.finished else record.ending(self.out)
        try:
            with (
                recording,
                _folder_kept(self.out) as check,
                _stop_requested() as requested,
            ):
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
        if self.finished and not (self.out / "model").is_dir():
            self.save()  # it was removed
        remove_later(self.out, self.step)
        with Log(self.out, self.step) as log:
            while not self.finished:
                began = time.monotonic()
                losses = self.advance()
                seconds = time.monotonic() - began
                check()
                notes, row = self._diagnoses(losses), dict[str, float]()
                if self.task.validation and self._due(self.run.validate_every):
                    row = self._validate()
                    notes += self.history.notes(
                        row["validation_loss"], last=self.step >= self.run.steps
                    )
                if self._networks and self._due(self.config.figures.every):
                    with self._averaged():
                        found = self._figures()
                    row |= {figure.name: figure.value for figure in found}
                    notes += [f"{figure.name}: {figure.shown}" for figure in found]
                preview: Path | None = None
                if self._due(self.run.sample_every):
                    with self._averaged():
                        drawn = self.task.preview()
                    preview = log.picture(self.step, drawn, self.task.captions)
                done, steps, validation = self.step, self.run.steps, self._validated
                observe(TrainingProgress(done, steps, losses, seconds, validation, notes, preview))
                if self._due(self.run.log_every):
                    row = {**losses, **self._rates(), **row}
                if row:
                    log.scalars(self.step, row, seconds)
                if self.profiles and self._due(self.run.snapshot_every):
                    save_snapshot(self.out, self.step, self.profiles.averages)
                if requested() or self._due(self.run.checkpoint_every):
                    self.save()
                if requested():
                    return False
        return True

    def save(self) -> Path:
        """Publishes the averaged weights as the model folder `out/model`, and a checkpoint.

        With `run.patience` those of the lowest validation loss so far are published. The checkpoint
        comes last: a run that is killed in between does all of this again.
        """
        with self._holding(self.best) if self.best else self._averaged():
            self.task.publish(self.out / "model")
        moments = [optimizer.moments() for optimizer in self.optimizers.values()]
        state = TrainingCheckpoint(
            self.step,
            self.config.model_dump(mode="json"),
            self._weights(),
            self.ema.average,
            {name: value for part in moments for name, value in part.items()},
            self.task.inputs,
            self.task.tokenizer,
            self.best,
            self.history.state(),
            self.profiles.averages if self.profiles else {},
            self.gradients.scale.state() if self.gradients.scale else {},
        )
        return checkpoints.save(self.out / "checkpoints", state, self.run.keep)

    def advance(self) -> dict[str, float]:
        """One update; the step's losses. Raises UndustError before a NaN reaches the weights."""
        for parameter in self.parameters.values():
            parameter.grad = None
        values = self.gradients.backward(self.step, self.run.batch)
        self.gradients.unscale(self.parameters.values())
        norms = {
            _suffixed("gradient_norm", name): float(optimizer.clip())
            for name, optimizer in self.optimizers.items()
        }
        scale = self.gradients.scale
        if not scale or scale.update(norms.values()):
            values |= norms
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
        if norms.keys() <= values.keys():  # else the gradients were not finite in float16
            for optimizer in self.optimizers.values():
                optimizer.step(optimizer.settings.rate(self.step, self.run.steps))
            self.ema.update(self.step)
        self.step += 1
        if self.profiles:
            self.profiles.update(self.step)
        return values

    def _weights(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers, by name."""
        return {name: value.detach() for name, value in {**self.parameters, **self.buffers}.items()}

    def _optimized(self) -> Iterator[tuple[str, OptimizerConfig, dict[str, nn.Parameter]]]:
        """Name, configuration and parameters of each optimizer; "" is the recipe's own."""
        own = self.task.optimizers
        for entry in ("", *own):
            parameters = {
                name: value
                for name, value in self.parameters.items()
                if (name.partition(".")[0] == entry if entry else name.partition(".")[0] not in own)
            }
            yield entry, own.get(entry, self.config.optimizer), parameters

    def _rates(self) -> dict[str, float]:
        """The learning rates of the last step."""
        return {
            _suffixed("learning_rate", name): optimizer.settings.rate(self.step - 1, self.run.steps)
            for name, optimizer in self.optimizers.items()
        }

    def _diagnoses(self, losses: Mapping[str, float]) -> list[str]:
        """The task's lines on faults that were not told yet, with each log line."""
        self._recent.append(losses)
        if self.step % self.run.log_every:
            return []
        means = {
            name: sum(row.get(name, value) for row in self._recent) / len(self._recent)
            for name, value in losses.items()
        }
        found = self.task.diagnoses(self.step, means)
        new = [found[name] for name in found if name not in self._told]
        self._told |= found.keys()
        return new

    def _due(self, every: int) -> bool:
        """Whether something that is done at intervals, and at the end, is done after this step."""
        return self.finished or self.step % every == 0

    def _validate(self) -> dict[str, float]:
        """The validation losses of the averaged weights."""
        order = self.task.validation
        assert order
        with self._averaged():
            found = validate(order, self.gradients.losses, self.run.batch, self.step)
        self._validated = found["validation_loss"]
        if self.history.add(self.step, self._validated) and self.run.patience:
            best = {**self.ema.average, **self.buffers}
            self.best = {name: value.detach().clone() for name, value in best.items()}
        return found

    def _averaged(self) -> AbstractContextManager[None]:
        """Within it the modules hold the averaged weights, in evaluation mode."""
        return self._holding(self.ema.average)

    @contextmanager
    def _holding(self, weights: Mapping[str, Tensor]) -> Generator[None]:
        live = self._weights()
        exchange(live, weights)
        self.task.modules.eval()
        try:
            with self.gradients.uncompiled():
                yield
        finally:
            self.task.modules.train()
            exchange(live, weights)


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of a module that are part of its state, by name."""
    state = module.state_dict(keep_vars=True)
    return {name: value for name, value in module.named_buffers() if name in state}


def _suffixed(name: str, module: str) -> str:
    """The name of a value that belongs to one module's optimizer."""
    return f"{name}_{module}" if module else name


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
