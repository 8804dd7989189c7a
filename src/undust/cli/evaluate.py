"""`undust evaluate`: a model's figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from undust.cli import console
from undust.cli.options import Model, request_options


@request_options("steps", "guidance")
def evaluate(
    model: Model,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A data set to measure it on.")],
    captions: Annotated[
        int, typer.Option(metavar="N", help="Training captions to paint; held-out ones all are.")
    ] = 200,
    template: Annotated[
        str, typer.Option(metavar="TEXT", help="What captions are put into: 'a picture of a {}'.")
    ] = "{}",
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the first picture.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    **options: Any,
) -> None:
    """Measure how often a model paints what a caption says, and how exact its first stage is.

    Of the folder of a first stage alone only the latter is measured.
    """
    from undust.evaluation import report
    from undust.formats.folder import INDEX
    from undust.model import load

    folder = Path(model)
    if (folder / "config.json").is_file() and not (folder / INDEX).is_file():
        alone = report.evaluate_first_stage(folder, data)
        if json:
            typer.echo(console.as_json(alone.model_dump(mode="json"), indent=2))
        else:
            console.table(["what", "figure>", "of"], alone.rows())
            size = "x".join(map(str, alone.size))
            console.summary(
                f"{console.seconds(alone.seconds)}: {size} px, {model} {alone.model_hash}"
            )
        return
    loaded = load(model)
    with console.counted("steps", "painting captions") as observe:
        found = report.evaluate(
            loaded,
            data,
            captions=captions,
            seed=seed,
            template=template,
            observe=observe,
            **options,
        )
    if json:
        typer.echo(console.as_json(found.model_dump(mode="json"), indent=2))
        return
    console.table(["what", "figure>", "of"], found.rows())
    console.summary(f"{console.seconds(found.seconds)}: {console.settings(found)}")
    console.summary(f"near means: {found.nearness}")
