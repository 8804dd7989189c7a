"""`undust convert`: a model from one layout into the other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from undust.cli import show
from undust.cli.options import PRECISIONS
from undust.errors import UndustError

MEGABYTE = 10**6


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="A diffusers folder, a checkpoint, or a pickle (.ckpt, .bin, .pt)."
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="What to write.")],
    to: Annotated[
        Literal["folder", "single-file"], typer.Option(help="The layout of what is written.")
    ],
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"] | None,
        typer.Option(help="Of the weights.  [default: that of each in SRC]"),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Take the moving averages of the U-Net's weights.")
    ] = False,
) -> None:
    """Write a model as a diffusers folder or as a single file of the original layout.

    Pickles are read in a process of their own that can do no harm, and nowhere else in undust.
    """
    import torch

    from undust.formats import pickles
    from undust.formats.convert import check, opened, size, write

    if not source.exists():
        raise UndustError(f"{source} does not exist")
    check(source, target, to)
    if source.is_file() and pickles.is_pickle(source):
        show.summary(f"reading {source} in a process of its own")
    precision: torch.dtype | None = getattr(torch, PRECISIONS[dtype]) if dtype else None
    with opened(source, target.resolve().parent, ema=ema) as found:
        done, total = 0, size(found.model, precision) // MEGABYTE
        with show.counted("MB", f"writing {target}") as observe:

            def wrote(number: int) -> None:
                nonlocal done
                done += number
                observe(done // MEGABYTE, total)

            unsaid = write(found.model, target, to, precision, wrote)
    for note in (*found.notes, *unsaid):
        show.summary(note)
    show.line(target)
