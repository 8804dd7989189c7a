"""A training recipe, run in a folder: what `undust train` calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from undust.errors import UndustError
from undust.training.diffusion import DiffusionTask
from undust.training.first_stage import FirstStageTask
from undust.training.loop import Progress, Trainer
from undust.training.recipes import DiffusionRecipe, FirstStageRecipe


def train(
    recipe: FirstStageRecipe | DiffusionRecipe,
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


def prepare(
    recipe: FirstStageRecipe | DiffusionRecipe, out: Path, *, resume: bool = False
) -> tuple[Trainer, list[str]]:
    """A run ready to train, and a sentence for each damaged checkpoint that it passed over.

    With `resume` it stands at the newest whole checkpoint of `out`, or at the start if there is
    none yet. Raises UndustError for checkpoints that would be lost without `resume`, for ones of
    which none is whole, and for data that cannot be trained on.
    """
    if not resume and any((out / "checkpoints").glob("step-*")):
        raise UndustError(
            f"{out} has the checkpoints of an earlier run: --resume goes on from them, "
            "another --out starts anew"
        )
    task = (
        FirstStageTask(recipe)
        if isinstance(recipe, FirstStageRecipe)
        else DiffusionTask(recipe, out)
    )
    trainer = Trainer(task, recipe.optimizer, recipe.run, recipe.model_dump(mode="json"), out)
    refused = trainer.resume() if resume else []
    if refused and not trainer.step:
        raise UndustError(f"{refused[0]}; {out} has no whole checkpoint to resume from")
    return trainer, refused
