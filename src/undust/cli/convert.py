"""`undust convert`: a model from one layout into the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from undust.cli import show
from undust.cli.options import PRECISIONS
from undust.errors import UndustError

if TYPE_CHECKING:
    from undust.formats.convert import Model

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
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:WEIGHT]", help="Merge a LoRA into the weights. Often."),
    ] = None,
) -> None:
    """Write a model as a diffusers folder or as a single file of the original layout.

    Pickles are read in a process of their own that can do no harm, and nowhere else in undust.
    """
    import torch

    from undust.formats import pickles
    from undust.formats.convert import check, opened, size, write

    if not source.exists():
        from undust.model import BUILT_IN, built_in

        if str(source) not in built_in():
            raise UndustError(f"{source} does not exist")
        source = BUILT_IN / source
    check(source, target, to)
    if source.is_file() and pickles.is_pickle(source):
        show.summary(f"reading {source} in a process of its own")
    precision: torch.dtype | None = getattr(torch, PRECISIONS[dtype]) if dtype else None
    with opened(source, target.resolve().parent, ema=ema) as found:
        _merge(found.model, lora or ())
        done, total = 0, size(found.model, precision) // MEGABYTE
        with show.counted("MB", f"writing {target}") as observe:

            def wrote(number: int) -> None:
                nonlocal done
                before, done = done // MEGABYTE, done + number
                if done // MEGABYTE > before:
                    observe(done // MEGABYTE, total)

            unsaid = write(found.model, target, to, precision, wrote)
    for note in (*found.notes, *unsaid):
        show.summary(note)
    show.line(target)


def _merge(model: Model, loras: Sequence[str]) -> None:
    """Puts LoRAs into the weights for good."""
    if not loras:
        return
    from undust.adapters.worn import Merged
    from undust.formats.lora.file import load
    from undust.formats.parts import Parts
    from undust.generation.asked import LoRA

    if not isinstance(model, Parts):
        raise UndustError("--lora: a first stage alone has nothing that a LoRA could change")
    networks = {name: network for name, network in model.networks.items() if name != "vae"}
    asked = [LoRA.read(given) for given in loras]
    Merged(networks).wear([(load(Path(each.path), networks), each.weight) for each in asked])
