"""`undust lab samplers`: measures the samplers' errors on a model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from undust.cli import console
from undust.cli.loading import opened_model
from undust.cli.options import ModelOption
from undust.cli.output import try_writing
from undust.formats.files import make_folder

app = typer.Typer(help="Measure samplers and schedules on a model.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Also write tables and a plot to this folder.")
]


@app.command()
def samplers(
    model: ModelOption = "emoji",
    schedule: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Schedule of all samplers.  [default: the model's]"),
    ] = None,
    prompts: Annotated[
        int, typer.Option(metavar="N", help="Number of pictures, with different prompts.")
    ] = 8,
    json: Json = False,
    out: Out = None,
) -> None:
    """Measure the error of samplers and schedules by number of network calls."""
    from undust.lab import page
    from undust.lab.samplers import compare

    if out:
        try_writing(out)
        page.require_matplotlib()
    loaded = opened_model(model)
    with console.counted("curves", "measuring errors") as observe:
        found = compare(loaded, schedule=schedule, pictures=prompts, observe=observe)
    tables = {
        f"Samplers, with the schedule {found.schedule}": ("sampler", found.samplers),
        f"Schedules, with the sampler {found.sampler}": ("schedule", found.schedules),
    }
    if json:
        typer.echo(console.as_json(found.model_dump(mode="json"), indent=2))
    else:
        for what, curves in tables.values():
            console.table(found.columns(what), found.rows(curves))
        console.summary(found.note)
    if out:
        make_folder(out)
        page.plot(found, out / "samplers.png")
        parts = [found.note, "![error against network calls](samplers.png)"]
        for title, (what, curves) in tables.items():
            parts += [f"## {title}", page.table(found.columns(what), found.rows(curves))]
        command = _command(model=model, schedule=schedule, prompts=prompts, out=out)
        page.write(out / "samplers.md", "Error against network calls", command, parts)
        console.summary(f"{out / 'samplers.md'}, {out / 'samplers.png'}")


def _command(**options: object) -> str:
    """The command line with all options that have a value."""
    given = [(f"--{option}", str(value)) for option, value in options.items() if value is not None]
    return shlex.join(["undust", "lab", "samplers", *(part for pair in given for part in pair)])
