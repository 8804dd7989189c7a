"""`undust train`: the training run of a recipe."""

from __future__ import annotations

import shlex
from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from undust.cli import console
from undust.cli.output import try_writing
from undust.formats.files import make_folder

RUNS = Path("runs")
AVERAGED_STEPS = 100  # for the loss that is shown


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="Recipe of the run, TOML.")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a key: run.steps=100. Repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the run.  [default: runs/RECIPE]"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint in --out.")
    ] = False,
) -> None:
    """Train a first stage, or a diffusion model on its latents."""
    from undust.training import kinds

    config = kinds.read(recipe, changes or (), console.note)
    out = out or RUNS / recipe.stem
    try_writing(out)
    again = ["undust", "train", str(recipe), "--out", str(out), "--resume"]
    again += [part for change in changes or () for part in ("--set", change)]
    how = f"continue with: {shlex.join(again)}"
    try:
        from undust.training.loop import TrainingProgress
        from undust.training.run import check_run, prepare

        if resume and (note := check_run(config, out)):
            console.note(note)
        make_folder(out)
        console.summary(f"reading {config.data.folder}")
        with console.counted("pictures", "preparing") as observe_images:
            trainer, notes = prepare(config, out, resume=resume, observe=observe_images)
        for sentence in notes:
            console.note(sentence)
        size = sum(parameter.numel() for parameter in trainer.parameters.values())
        steps = f"steps {trainer.step + 1} to {config.run.steps} of {config.run.batch} samples"
        if trainer.finished:
            steps = f"all {trainer.step} steps are done"
        console.summary(f"{config.kind}: {console.amount(size)} parameters, {steps}, in {out}")
        with console.Progress(config.run.steps, "steps", trainer.step) as bar:
            rate, losses = 0.0, deque[float](maxlen=AVERAGED_STEPS)

            def observe(progress: TrainingProgress) -> None:
                nonlocal rate
                now = config.run.batch / progress.seconds
                rate = now if not rate else 0.9 * rate + 0.1 * now
                losses.append(progress.losses["loss"])
                loss = sum(losses) / len(losses)
                for sentence in progress.notes:
                    bar.note(sentence)
                validation = progress.validation
                shown = "" if validation is None else f", validation {validation:.4f}"
                speed = f"{console.amount(rate)} samples/s"
                bar.update(progress.step, f"loss {loss:.4f}{shown}, {speed}")

            finished = trainer.train(observe)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; what was not saved is lost; {how}") from None
    if not finished:
        raise KeyboardInterrupt(f"stopped and saved at step {trainer.step}; {how}")
    model = out / "model"
    if trainer.history.exhausted:
        console.summary(trainer.history.stopped())
    console.line(model)
    console.summary(trainer.task.next_steps(model, config.data.folder))
