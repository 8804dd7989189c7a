"""`undust init`: a commented recipe to start from."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from undust.cli import console
from undust.cli.output import try_writing_file
from undust.errors import UndustError
from undust.formats.files import atomic_write


def init(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="KIND", help="Kind of recipe; all are listed without it."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Argument(metavar="PICTURES", help="Training pictures.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The recipe's file.  [default: KIND.toml]")
    ] = None,
) -> None:
    """Write a commented training recipe."""
    from undust.training import recipe_templates
    from undust.training.survey import recipe_values, survey

    if kind is None:
        rows = [[name, recipe_templates.summary(name)] for name in recipe_templates.names()]
        console.table(["recipe", "trains"], rows)
        return
    recipe_templates.defaults(kind)
    path = out or Path(f"{kind}.toml")
    if path.exists():
        raise UndustError(f"{path} exists; another --out keeps it")
    try_writing_file(path)
    values: dict[str, object] = {}
    if folder is not None:
        with console.counted("pictures", "reading") as observe:
            found = survey(folder, observe, videos=kind == "film")
        console.summary(str(found))
        values = recipe_values(found, kind)
    text = recipe_templates.recipe(kind, **values)
    atomic_write(path, text.encode())
    console.line(path)
    console.summary(f"change it, then: undust train {quote(str(path))}")
