"""`undust train`: a recipe's training run."""

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
MEAN = 100  # steps over which the loss shown is a mean


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to train, and how.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: run.steps=100. Often."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the run.  [default: runs/RECIPE]"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")
    ] = False,
) -> None:
    """Train a first stage, or a diffusion model on its latents."""
    from undust.training import configs

    read = configs.read(recipe, changes or ())
    out = out or RUNS / recipe.stem
    try_writing(out)
    again = ["undust", "train", str(recipe), "--out", str(out), "--resume"]
    again += [part for change in changes or () for part in ("--set", change)]
    go_on = f"go on with: {shlex.join(again)}"
    try:
        from undust.training.loop import Progress
        from undust.training.run import check_run, prepare

        if resume and (note := check_run(read, out)):
            console.note(note)
        make_folder(out)
        console.summary(f"reading {read.data.folder}")
        with console.counted("pictures", "making latents") as observe_latents:
            trainer, notes = prepare(read, out, resume=resume, observe=observe_latents)
        for sentence in notes:
            console.note(sentence)
        size = sum(parameter.numel() for parameter in trainer.parameters.values())
        steps = f"steps {trainer.step + 1} to {read.run.steps} of {read.run.batch} samples"
        if trainer.step >= read.run.steps:
            steps = f"all {trainer.step} steps are done"
        console.summary(f"{read.kind}: {console.amount(size)} parameters, {steps}, in {out}")
        with console.Progress(read.run.steps, "steps", trainer.step) as bar:
            rate, losses = 0.0, deque[float](maxlen=MEAN)

            def observe(progress: Progress) -> None:
                nonlocal rate
                now = read.run.batch / progress.seconds
                rate = now if not rate else 0.9 * rate + 0.1 * now
                losses.append(progress.losses["loss"])
                loss = sum(losses) / len(losses)
                bar.update(progress.step, f"loss {loss:.4f}, {console.amount(rate)} samples/s")

            finished = trainer.train(observe)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; what was not saved is lost; {go_on}") from None
    if not finished:
        raise KeyboardInterrupt(f"stopped and saved at step {trainer.step}; {go_on}")
    model, data = out / "model", read.data.folder
    console.line(model)
    console.summary(
        f"paint with it: undust generate {shlex.quote(trainer.task.example)} "
        f"--model {shlex.quote(str(model))}; diffusers opens it as StableDiffusionPipeline"
        if read.kind == "diffusion"
        else f'train on its latents: a diffusion recipe with first_stage = "{model}"; '
        f"measure it: undust evaluate {shlex.quote(str(model))} {shlex.quote(str(data))}"
    )
