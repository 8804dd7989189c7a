"""`undust convert`: models between layouts, and from pickles to safetensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from undust.cli import console
from undust.errors import UndustError

if TYPE_CHECKING:
    from undust.formats.components import Components
    from undust.formats.convert import LoadedModel

MEGABYTE = 10**6


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="A diffusers folder, a checkpoint, a LoRA, a ControlNet or a textual inversion; "
            "also pickled (.ckpt, .bin, .pt, .pth).",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The file or folder to write.")],
    to: Annotated[Literal["folder", "single-file"], typer.Option(help="The layout of DST.")],
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"] | None,
        typer.Option(help="Precision of the weights.  [default: as in SRC]"),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Use the moving averages of the U-Net's weights.")
    ] = False,
    prediction: Annotated[
        Literal["epsilon", "v"] | None,
        typer.Option(help="The U-Net's prediction, if SRC does not store it or is wrong."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:WEIGHT]", help="Merge a LoRA into the weights. Repeatable."),
    ] = None,
) -> None:
    """Write a model as a diffusers folder or as a single file of the original layout.

    A LoRA and a textual inversion are always a single file, and keep their tensors' names. Pickles
    are only read by this command, in a separate process with limited rights.
    """
    from undust.formats import pickles
    from undust.formats.convert import check_target, open_model, size_in_bytes, write_model
    from undust.formats.original.detect import PREDICTIONS
    from undust.networks.dtype_and_device import precision

    if not source.exists():
        from undust.formats.locate import BUILT_IN, built_in

        if str(source) not in built_in():
            raise UndustError(f"{source} does not exist")
        source = BUILT_IN / source
    replaced = check_target(source, target, to)
    if not source.is_dir() and pickles.is_pickle(source):
        console.summary(f"reading {source} in a separate process")
    kept = precision(dtype) if dtype else None
    with open_model(source, target.resolve().parent, ema=ema) as found:
        _merge(found, lora or ())
        if prediction is not None:
            _model(found, "--prediction").prediction = PREDICTIONS[prediction]
        done, total = 0, size_in_bytes(found.model, kept) // MEGABYTE
        with console.counted("MB", f"writing {target}") as observe:

            def wrote(number: int) -> None:
                nonlocal done
                before, done = done // MEGABYTE, done + number
                if done // MEGABYTE > before:
                    observe(done // MEGABYTE, total)

            notes = write_model(found.model, target, to, kept, wrote)
    for note in (*found.notes, *notes):
        console.summary(note)
    if replaced:
        console.summary(f"replaced {replaced}")
    console.line(target)


def _merge(found: LoadedModel, loras: Sequence[str]) -> None:
    """Merges LoRAs into the weights permanently."""
    if not loras:
        return
    from undust.adapters.applied_loras import merge
    from undust.formats.lora.file import load_lora, lora_file
    from undust.recipe.inputs import LoRA

    networks = dict(_model(found, "--lora").networks)
    del networks["vae"]
    asked = [LoRA.read(given) for given in loras]
    merge(
        networks, [(load_lora(lora_file(Path(each.path)), networks), each.weight) for each in asked]
    )


def _model(found: LoadedModel, option: str) -> Components:
    """The whole model that an option changes."""
    from undust.formats.components import Components

    if not isinstance(found.model, Components):
        raise UndustError(f"{option} needs a whole model; this is {found.kind}")
    return found.model
