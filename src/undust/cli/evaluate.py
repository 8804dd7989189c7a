"""`undust evaluate`: measures a model on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from undust.cli import console
from undust.cli.options import Model, request_options


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
    template: Annotated[
        str, typer.Option(metavar="TEXT", help="Text around captions, such as 'a picture of a {}'.")
    ] = "{}",
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the first picture.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    **options: Any,
) -> None:
    """Measure a model's caption recall and the reconstruction error of its first stage.

    MODEL may also be the folder of a first stage, of which only the latter is measured.
    """
    from undust.evaluation import report
    from undust.formats.folder import INDEX
    from undust.pipeline import load

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
    with console.counted("steps", "generating pictures of captions") as observe:
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
    console.summary(f"nearest by {found.nearness}")
