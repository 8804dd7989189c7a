"""`undust lambda search`: tables of guidance strengths over noise level and frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from undust.cli import console
from undust.cli.output import note_replaced, try_writing_file
from undust.errors import UndustError

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 25
HIGHEST, LOWEST = 700.0, 0.002  # σ of Stable Video Diffusion
FILES, HEAT_MAP = (".npy", ".csv"), ".png"

app = typer.Typer(help="Make tables of guidance strengths for videos that follow known views.")


@app.callback()
def lambdas() -> None:
    """Make tables of guidance strengths for videos that follow known views."""


@app.command()
def search(
    out: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="A .npy or .csv file; the heat map is written beside it. Or a .png file for the "
            "heat map alone.",
        ),
    ],
    sigmas: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE|σ,…",
            help="Noise levels: a schedule, from σ 700 to 0.002 (Stable Video Diffusion), a .npy "
            "or .csv file, or a list such as 14.6,3.2,0.8.",
        ),
    ] = "karras",
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=1000,
            help=f"Number of steps.  [default: {STEPS}, or those listed]",
        ),
    ] = None,
    frames: Annotated[
        int, typer.Option(metavar="N", min=2, max=250, help="Number of frames of the video.")
    ] = 25,
    views: Annotated[
        Literal["1", "2"],
        typer.Option(help="Known images: the first frame, or also the last; an even camera path."),
    ] = "1",
    derived: Annotated[
        bool, typer.Option("--derived", help="The roots as derived, not as published.")
    ] = False,
) -> None:
    """Search the table of guidance strengths λ over noise level and frame (NVS-Solver).

    The table has w = λ/(1 + λ), a row for each noise level and a column for each frame, and is for
    `LambdaGuidance` in Python. Of 1,800 triples of coefficients the one with the most λ above 1 is
    chosen.
    """
    from undust.diffusion import lambda_tables
    from undust.formats.lambda_files import table_suffix, write_table
    from undust.lab.heat_map import write_heat_map

    picture = out if out.suffix.lower() == HEAT_MAP else out.with_suffix(HEAT_MAP)
    written = [picture] if out == picture else [out, picture]
    if out != picture:
        table_suffix(out)
    levels = _levels(sigmas, steps)
    for path in written:
        try_writing_file(path)
    for path in written:
        note_replaced(path)
    table = lambda_tables.search(levels, frames, views=2 if views == "2" else 1, derived=derived)
    if out != picture:
        write_table(out, table)
    write_heat_map(picture, table)
    assert table.triple is not None
    v1, v2, v3 = table.triple
    console.line(
        f"v1 = {v1:g}, v2 = {v2:g}, v3 = {v3:g}: λ is above 1 in {table.count} of "
        f"{table.weights.numel()} ({len(table.levels)} noise levels × {frames} frames)"
    )
    console.line(", ".join(map(str, written)))


def _levels(sigmas: str, steps: int | None) -> Tensor:
    """σ of a file, a list or a schedule. Raises UndustError for another number of steps."""
    from undust.diffusion.lambda_tables import noise_levels
    from undust.diffusion.process import EDM
    from undust.diffusion.schedules import SCHEDULES, listed
    from undust.formats.lambda_files import read_sigmas

    path = Path(sigmas)
    if path.suffix.lower() in FILES or path.is_file():
        found = read_sigmas(path)
    elif (found := listed(sigmas)) is None:
        return SCHEDULES[sigmas](EDM(LOWEST, HIGHEST), steps or STEPS)
    count = len(noise_levels(found))
    if steps is not None and count != steps:
        raise UndustError(f"--sigmas {sigmas}: {count} noise levels above 0, for {steps} steps")
    return found
