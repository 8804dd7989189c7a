"""Training runs in folders, started and resumed: the library's side of `undust train`."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from undust.errors import UndustError
from undust.formats.files import make_folder, restore
from undust.formats.locks import FileLock, LockedError
from undust.formats.run_folder import LOCK
from undust.training import checkpoints, kinds, record
from undust.training.averaging import reconstructed
from undust.training.data import Observe
from undust.training.loop import Trainer, TrainingProgress
from undust.training.precision import resolved
from undust.training.resume import compare_configs, same_run
from undust.training.task import TrainingConfig


def train(
    config: TrainingConfig,
    out: Path,
    *,
    resume: bool = False,
    observe: Callable[[TrainingProgress], None] = lambda _: None,
) -> bool:
    """Trains to the last step; False if Ctrl-C stopped it (the state is saved then).

    `out/model` is the model, `out/checkpoints` has the states to resume from, `out/log.jsonl` the
    losses. observe: called after every step. Raises UndustError as `prepare` does, and when the
    loss is no longer a number.
    """
    trainer, _ = prepare(config, out, resume=resume)
    return trainer.train(observe)


def check_run(config: TrainingConfig, out: Path) -> str:
    """A note if `out` has nothing to resume, so that the run starts anew; else "".

    Raises UndustError if `out` is probably mistyped: it does not exist, and a folder beside it has
    a run of the same configuration, whatever its table `run`.
    """
    if any((out / "checkpoints").glob("step-*")):
        return ""
    config = config.complete()
    runs = {
        path.parent.name: found
        for path in out.parent.glob("*/checkpoints")
        if (found := checkpoints.newest_config(path))
    }
    for name, (step, other) in runs.items():
        if not out.exists() and same_run(other, config):
            raise UndustError(
                f"{out} does not exist; {out.with_name(name)} is at step {step} of this recipe: "
                "is that meant? Without --resume this starts anew"
            )
    names = get_close_matches(out.name, runs, n=1)
    near = f"; the nearest run is {out.with_name(names[0])}" if names else ""
    return f"{out} has no checkpoint to resume from: it starts at step 1{near}"


def prepare(
    config: TrainingConfig,
    out: Path,
    *,
    resume: bool = False,
    observe: Observe = lambda _done, _all: None,
) -> tuple[Trainer, list[str]]:
    """A run ready to train, and notes for people: skipped files, changed keys.

    With `resume` it is at the newest whole checkpoint of `out`, or at the start if there is none
    yet. `out` is locked until the run ends. observe: called with the number of images prepared and
    of all. Raises UndustError for a folder in which another run trains, for checkpoints that would
    be lost without `resume`, for checkpoints of which none is whole or that the configuration
    cannot resume, for data that cannot be trained on, and for faults that would end the run at its
    first save or preview.
    """
    make_folder(out)
    try:
        lock = FileLock(out / LOCK)
    except LockedError as error:
        raise UndustError(
            f"{out} is in use: {error} trains in it; stop that first, or choose another --out"
        ) from None
    except OSError as error:
        raise UndustError(f"cannot write to {out}: {error.strerror}") from error
    try:
        return _locked(config, out, lock, observe, resume=resume)
    except BaseException:
        lock.release()
        raise


def _locked(
    config: TrainingConfig,
    out: Path,
    lock: FileLock,
    observe: Observe,
    *,
    resume: bool,
) -> tuple[Trainer, list[str]]:
    restore(out / "model")
    for leftover in (out / "checkpoints").glob(".step-*.*"):  # of earlier versions
        restore(leftover.with_name(leftover.stem.removeprefix(".")))
    if not resume and any((out / "checkpoints").glob("step-*")):
        raise UndustError(
            f"{out} has the checkpoints of an earlier run: --resume continues it, "
            "another --out starts anew"
        )
    checkpoint, refused = checkpoints.newest(out / "checkpoints")
    if refused and not checkpoint:
        raise UndustError(f"{refused[0]}; {out} has no whole checkpoint to resume from")
    notes = [f"skipped: {sentence}" for sentence in refused]
    before = checkpoint.config.get("run", {}) if checkpoint else None
    config, note = resolved(config.complete(), before)
    notes += [note] if note else []
    if checkpoint:
        notes += compare_configs(checkpoint, config, out)
    task = config.task(out, checkpoint, observe)
    trainer = Trainer(task, config, out, lock)
    notes += task.notes
    if checkpoint:
        trainer.resume(checkpoint)
        if trainer.history.exhausted:
            notes.append(f"{trainer.history.stopped()}; a larger run.patience continues")
        if checkpoint.step > config.run.steps:
            notes.append(
                f"run.steps is {config.run.steps}, but {checkpoint.step} are done: nothing is "
                "left to train"
            )
    if not trainer.finished:
        trainer.rehearse()
        record.begin(out, config, task, notes, trainer.step)
    return trainer, notes


def publish_average(
    out: Path,
    length: float,
    folder: Path,
    step: int | None = None,
    observe: Observe = lambda _done, _all: None,
) -> None:
    """Writes the model of a run with the average of a length as its weights.

    The run's data and inputs have to be as they were. Raises UndustError as `reconstructed` and
    `TrainingConfig.task` do, and for a folder without a whole checkpoint.
    """
    averaged = reconstructed(out, length, step)
    checkpoint, refused = checkpoints.newest(out / "checkpoints")
    if not checkpoint:
        raise UndustError(refused[0] if refused else f"{out} has no checkpoint")
    config = kinds.parse(checkpoint.config, str(out)).complete()
    task = config.task(out, checkpoint, observe)
    task.modules.load_state_dict({**checkpoint.weights, **averaged})
    task.modules.eval()
    task.publish(folder)
