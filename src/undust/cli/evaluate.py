"""`undust evaluate`: measures a model on a data set."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undust.cli import console
from undust.cli.loading import opened_model
from undust.cli.options import Model, request_options
from undust.errors import UndustError

if TYPE_CHECKING:
    from undust.evaluation.report import FirstStageReport, ModelReport

NETWORKS = "Networks of the figures"  # a group in the help


@request_options("steps", "guidance")
def evaluate(
    model: Model,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Data set.")],
    captions: Annotated[
        int,
        typer.Option(
            metavar="N", help="Number of training captions; all held-out captions are used."
        ),
    ] = 200,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--caption",
            metavar="COLUMN",
            help="Column of captions, or folder for the names of folders. Repeatable.  "
            "[default: text, for training captions also text_ko; else as undust train chooses]",
        ),
    ] = None,
    template: Annotated[
        str, typer.Option(metavar="TEXT", help="Text around captions, such as 'a picture of a {}'.")
    ] = "{}",
    pictures: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of pictures for distances of sets, with conditions of the data in a "
            "random order.  [default: those of the captions; 1000 without text]",
        ),
    ] = None,
    map_columns: Annotated[
        list[str] | None,
        typer.Option(
            "--map", metavar="COLUMN", help="Column of a map's file, in the model's order."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the first picture.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the pictures; an evaluation that was stopped goes on there.",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="Only generate this part of the pictures into --out, beside other processes.",
        ),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Number of processes that generate pictures; each loads the model.",
        ),
    ] = 1,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help="Feature network of distances of sets: efficientnet-lite0, vgg16, a file, a "
            "folder, org/name on the hub, or none.  [default: efficientnet-lite0 if installed]",
            rich_help_panel=NETWORKS,
        ),
    ] = None,
    perceptual: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help="Feature network of the perceptual distance.  [default: vgg16 if installed]",
            rich_help_panel=NETWORKS,
        ),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help="Weights of LPIPS for --perceptual: a file, or org/name on the hub.",
            rich_help_panel=NETWORKS,
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help="CLIP for the CLIP score: a folder, or org/name on the hub.",
            rich_help_panel=NETWORKS,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    **options: Any,
) -> None:
    """Measure a model: the distance of its pictures from real ones, and its first stage's error.

    MODEL may also be the folder of a first stage, of which only the latter is measured. A figure's
    name has all that it depends on; figures of different names are not comparable.
    """
    from undust import pipeline
    from undust.evaluation.networks import FigureNetworks
    from undust.evaluation.processes import Processes
    from undust.evaluation.report import Evaluation, evaluate_first_stage
    from undust.formats.files import expanded
    from undust.formats.folder import INDEX

    def loaded_networks(perceptual: str | None) -> FigureNetworks:
        networks = FigureNetworks.load(features, perceptual, heads, clip)
        for note in networks.notes:
            console.note(note)
        return networks

    folder, place = Path(model), _part(part, out)
    captionless = f"clip: {model} has no captions, with which a CLIP score compares pictures"
    if (folder / "config.json").is_file() and not (folder / INDEX).is_file():
        if clip:
            raise UndustError(captionless)
        networks = loaded_networks(perceptual)
        with console.counted("pictures", "reconstructing pictures") as observe:
            alone = evaluate_first_stage(folder, data, networks, observe)
        size = "x".join(map(str, alone.size))
        return _print(alone, json, [f"{size} px, {model} {alone.model_hash}"])
    loaded = opened_model(model)
    if clip and not loaded.texts:
        raise UndustError(captionless)
    if loaded.autoencoder.downsampling_factor == 1 and not heads:
        perceptual = "none"  # it measures a first stage
    # A part of the pictures needs no networks.
    networks = FigureNetworks() if place else loaded_networks(perceptual)
    with ExitStack() as stack:
        observe_real = stack.enter_context(console.counted("pictures", "reading real pictures"))
        kept = expanded(out) if out else None
        if processes > 1 and not kept:
            kept = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undust-")))
        planned = Evaluation.plan(
            loaded,
            data,
            captions=captions,
            fields=fields or (),
            pictures=pictures,
            seed=seed,
            template=template,
            maps=map_columns or (),
            networks=networks.to(loaded.device),
            folder=kept,
            observe_real=observe_real,
            **options,
        )
        spread = Processes(processes, partial(pipeline.load, model)) if processes > 1 else None
        if not place:
            planned.check()
        if place or spread:
            with console.counted("steps", "generating pictures") as observe:
                rest = planned.sample(place, observe, spread)
            if place:
                missing = f"{rest} pictures of other parts are missing" if rest else "all are there"
                return console.summary(
                    f"part {part} is in {out}, {missing}; the command without --part measures them"
                )
        with console.counted("steps", f"{'read' if spread else 'generat'}ing pictures") as observe:
            found = planned.report(observe, observe_real)
    nearest = [f"nearest by {found.nearness}"] if found.recall else []
    return _print(found, json, [console.settings(found), *nearest])


def _part(part: str | None, out: Path | None) -> tuple[int, int] | None:
    if part is None:
        return None
    if out is None:
        raise UndustError("part: it needs --out, the folder where the parts come together")
    if not (found := re.fullmatch(r"(\d{1,6})/(\d{1,6})", part)):
        raise UndustError(f"part: has to be K/N, such as 1/4, not {part}")
    return int(found[1]), int(found[2])


def _print(found: ModelReport | FirstStageReport, json: bool, about: Sequence[str]) -> None:
    """Prints a report; about: lines on its settings, which the JSON has too."""
    if json:
        typer.echo(console.as_json(found.model_dump(mode="json"), indent=2))
        return
    console.table(["what", "figure>", "of"], found.rows())
    first, *more = about
    for line in (f"{console.seconds(found.seconds)}: {first}", *more):
        console.summary(line)
