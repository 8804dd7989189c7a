"""A training recipe, run in a folder: what `undust train` calls."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from undust.errors import UndustError
from undust.formats.files import make_folder, restore
from undust.formats.locks import FileLock, LockedError
from undust.training import checkpoints
from undust.training.configs import DiffusionConfig, FirstStageConfig
from undust.training.data import Observe
from undust.training.derived import with_derived
from undust.training.diffusion import DiffusionTask
from undust.training.first_stage import FirstStageTask
from undust.training.loop import Progress, Trainer
from undust.training.precision import resolved
from undust.training.resume import compare_inputs, compare_recipes, same_run

LOCK = "run.lock"  # there while a run trains in the folder


def train(
    recipe: FirstStageConfig | DiffusionConfig,
    out: Path,
    *,
    resume: bool = False,
    observe: Callable[[Progress], None] = lambda _: None,
) -> bool:
    """Trains to the recipe's last step; False if Ctrl-C stopped it (its state is saved then).

    `out/model` is the model, `out/checkpoints` what `resume` goes on from, `out/log.jsonl` the
    figures of the run. `observe` is told of every step. Raises UndustError as `prepare` does, and
    when the loss is no longer a number.
    """
    trainer, _ = prepare(recipe, out, resume=resume)
    return trainer.train(observe)


def check_run(recipe: FirstStageConfig | DiffusionConfig, out: Path) -> str:
    """A note if there is nothing in `out` to resume, so that the run starts anew; else "".

    Raises UndustError if `out` is probably mistyped: it does not exist, and a folder beside it has
    a run of this very recipe, whatever its table `run` says.
    """
    if any((out / "checkpoints").glob("step-*")):
        return ""
    if isinstance(recipe, DiffusionConfig):
        recipe = with_derived(recipe)
    written = recipe.model_dump(mode="json")
    runs = {
        path.parent.name: found
        for path in out.parent.glob("*/checkpoints")
        if (found := checkpoints.newest_recipe(path))
    }
    for name, (step, other) in runs.items():
        if not out.exists() and same_run(other, written):
            raise UndustError(
                f"{out} does not exist; {out.with_name(name)} is at step {step} of this recipe: "
                "is that meant? Without --resume this starts anew"
            )
    names = get_close_matches(out.name, runs, n=1)
    near = f"; the nearest run is {out.with_name(names[0])}" if names else ""
    return f"{out} has no checkpoint to resume from: it starts at step 1{near}"


def prepare(
    recipe: FirstStageConfig | DiffusionConfig,
    out: Path,
    *,
    resume: bool = False,
    observe: Observe = lambda _done, _all: None,
) -> tuple[Trainer, list[str]]:
    """A run ready to train, and notes for people: what was passed over, what changed.

    With `resume` it stands at the newest whole checkpoint of `out`, or at the start if there is
    none yet. `out` is locked until the run ends. observe: told how many pictures of all are
    encoded as latents. Raises UndustError for a folder in which another run trains, for
    checkpoints that would be lost without `resume`, for ones of which none is whole or that the
    recipe cannot go on from, for data that cannot be trained on, and for what would end the run at
    its first save or preview.
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
        return _locked(recipe, out, lock, observe, resume=resume)
    except BaseException:
        lock.release()
        raise


def _locked(
    recipe: FirstStageConfig | DiffusionConfig,
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
            f"{out} has the checkpoints of an earlier run: --resume goes on from them, "
            "another --out starts anew"
        )
    checkpoint, refused = checkpoints.newest(out / "checkpoints")
    if refused and not checkpoint:
        raise UndustError(f"{refused[0]}; {out} has no whole checkpoint to resume from")
    notes = [f"passed over: {sentence}" for sentence in refused]
    if isinstance(recipe, DiffusionConfig):
        recipe = with_derived(recipe)
    before = checkpoint.recipe.get("run", {}) if checkpoint else None
    recipe, note = resolved(recipe, before)
    notes += [note] if note else []
    written = recipe.model_dump(mode="json")
    if checkpoint:
        notes += compare_recipes(checkpoint, written, out)
    if isinstance(recipe, FirstStageConfig):
        task = FirstStageTask(recipe, observe)
        notes += task.notes
        if checkpoint:
            notes += compare_inputs(checkpoint, task.inputs, out)
    else:
        task = DiffusionTask(recipe, out, checkpoint, observe)
        notes += task.notes
    trainer = Trainer(task, recipe.optimizer, recipe.run, written, out, lock)
    if checkpoint:
        trainer.resume(checkpoint)
        if checkpoint.step > recipe.run.steps:
            notes.append(
                f"run.steps is {recipe.run.steps}, but {checkpoint.step} are done: nothing is "
                "left to train"
            )
    if trainer.step < recipe.run.steps:
        trainer.rehearse()
    return trainer, notes
