"""`undust report`: a page about a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from undust.cli import console


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder of a run, or of several runs."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="The page.  [default: RUN/report.html]"),
    ] = None,
) -> None:
    """Write one HTML page about a training run: curves, samples, figures, recipe and data.

    The run may be finished, running or stopped. The page needs no other file and no network.
    """
    from undust.report.page import write_report

    written = write_report(run, out)
    console.line(written)
    console.summary(f"{written.stat().st_size / 2**20:.1f} MiB; open it in a browser")
