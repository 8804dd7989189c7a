"""`undust train`: the training run of a recipe, or of a folder of pictures alone."""

from __future__ import annotations

import os
import shlex
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undust.cli import console
from undust.cli.output import try_writing
from undust.errors import UndustError
from undust.formats.files import make_folder

if TYPE_CHECKING:
    from undust.training.kinds import AnyTrainingConfig

RUNS = Path("runs")
AVERAGED_STEPS = 100  # for the loss that is shown
MINUTES = 10.0
LONGEST = 10_000  # minutes, a week
DATA = (".tar", ".parquet")  # endings of data sets in files


def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE.toml|PICTURES",
            help="Recipe of the run, TOML; or a folder of pictures, for which recipes are chosen.",
        ),
    ],
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
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            min=1,
            max=LONGEST,
            help="Time for a folder of pictures, from the start to the report.  [default: 10]",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint in --out.")
    ] = False,
) -> None:
    """Train a model by a recipe, or from a folder of pictures alone."""
    from undust.training import kinds

    out = out or RUNS / Path(os.path.abspath(recipe)).stem  # noqa: PTH100, which follows links
    again = ["undust", "train", str(recipe), "--out", str(out), "--resume"]
    if recipe.is_dir() or recipe.suffix.lower() in DATA:
        if changes:
            raise UndustError(
                "--set changes a recipe; a folder of pictures has none yet: undust init writes one"
            )
        again += ["--minutes", f"{minutes:g}"] if minutes else []
        how = f"continue with: {shlex.join(again)}"
        _train_folder(recipe, out, (minutes or MINUTES) * 60, how, resume=resume)
        return
    if not recipe.exists():
        raise UndustError(
            f"{recipe} does not exist; expected a recipe, TOML, or a folder of pictures"
        )
    if minutes:
        raise UndustError("--minutes is for a folder of pictures; a recipe has run.steps")
    config = kinds.read(recipe, changes or (), console.note)
    again += [part for change in changes or () for part in ("--set", change)]
    line = _run(config, out, f"continue with: {shlex.join(again)}", resume=resume)
    console.line(out / "model")
    console.summary(line)


def _run(config: AnyTrainingConfig, out: Path, how: str, *, resume: bool) -> str:
    """Trains to the end; a line for people on uses of the model.

    how: a line on the command that continues the run. Raises KeyboardInterrupt when stopped.
    """
    try_writing(out)
    try:
        from undust.training.loop import TrainingProgress
        from undust.training.machine import peak_memory
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
                if progress.preview:
                    bar.note(f"samples: {progress.preview}")
                validation = progress.validation
                shown = "" if validation is None else f", validation {validation:.4f}"
                norm = progress.losses.get("gradient_norm", 0.0)
                speed = f"{console.amount(rate)} samples/s"
                memory = f"{peak_memory().get('memory', 0.0):.1f} GiB"
                text = f"loss {loss:.4f}{shown}, gradient {norm:.3g}, {speed}, {memory}"
                bar.update(progress.step, text)

            finished = trainer.train(observe)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; what was not saved is lost; {how}") from None
    if not finished:
        raise KeyboardInterrupt(f"stopped and saved at step {trainer.step}; {how}")
    if trainer.history.exhausted:
        console.summary(trainer.history.stopped())
    return trainer.task.next_steps(out / "model", config.data.folder)


def _train_folder(folder: Path, out: Path, seconds: float, how: str, *, resume: bool) -> None:
    """Trains a first stage and a diffusion model, and writes samples and a report."""
    from undust.report.page import write_report
    from undust.training.starter import Starter, check_new
    from undust.training.survey import survey

    try_writing(out)
    if not resume:
        check_new(out)
    console.summary(f"reading {folder}")
    with console.counted("pictures", "reading") as observe:
        found = survey(folder, observe)
    console.summary(str(found))
    if found.broken:
        console.note(f"files skipped as unreadable: {found.broken}; undust data check names them")
    starter = Starter(found, out, seconds, resume=resume, note=console.summary)
    line = ""
    for stage in starter.stages():
        console.summary(f"{stage.recipe}: {stage.config.run.steps} steps")
        line = _run(stage.config, stage.out, how, resume=resume)
    with console.counted("pictures", "generating samples") as observe:
        sheet = starter.sheet(observe)
    for path in (starter.model, sheet, write_report(out)):
        console.line(path)
    console.summary(line)
