"""`undust ema`: a model with averaged weights of another length, from a run's snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from undust.cli import console


def ema(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")],
    length: Annotated[
        float,
        typer.Option(
            metavar="SIGMA",
            help="Standard deviation of the average's profile, as a share of the training.",
        ),
    ],
    step: Annotated[
        int | None, typer.Option(metavar="N", help="Step of a snapshot.  [default: the last]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the model.  [default: RUN/model-ema-SIGMA]"),
    ] = None,
) -> None:
    """Publish averaged weights of a length chosen after training (run.snapshot_every; EDM2)."""
    from undust.training.run import publish_average

    out = out or run / f"model-ema-{length:g}"
    with console.counted("pictures", "preparing") as observe:
        publish_average(run, length, out, step, observe)
    console.line(out)
