"""The options that several commands take, each once; those of a request come from its model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from undust.recipe.request import OPTIONS, Option, value_type

BUILT_IN = "emoji"

_WHAT = "A built-in model, a diffusers folder, a Stable Diffusion checkpoint, or org/name."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=_WHAT)]
ModelOption = Annotated[str, typer.Option(metavar="NAME|PATH", help=_WHAT)]
Precision = Annotated[
    Literal["fp32", "fp16", "bf16", "auto"] | None,
    typer.Option(help="Of the weights in memory; auto: the fastest here.  [default: fp32]"),
]
Vae = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="A first stage to use instead of the model's own."),
]
OutFolder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A new or empty folder.  [default: a folder in undust-out]"),
]
Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="Where to compute, such as cuda.  [default: cpu]")
]
Engine = Annotated[
    str,
    typer.Option(metavar="NAME", help="How networks are computed; see `undust engines`."),
]
LowMemory = Annotated[
    bool | None,
    typer.Option(
        "--low-memory/--no-low-memory",
        help="Keep large weights in their file's 16 bits: half the memory, the same pictures, a "
        "little slower.  [default: for models of 1 GiB or more]",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH|DIR", help="A .png, .jpg or .webp file, or a folder.  [default: undust-out]"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON for each picture.")]


def request_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds options of a `Request`, all of them unless named, to a command with **options.

    In the help they follow its model. The command gets those that were given.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            left_out = {name for name in added if given[name] is None}
            command(**{name: value for name, value in given.items() if name not in left_out})

        own = [
            each.replace(kind=each.KEYWORD_ONLY)
            for each in inspect.signature(command, eval_str=True).parameters.values()
            if each.kind is not each.VAR_KEYWORD
        ]
        added = {name: _parameter(name, OPTIONS[name]) for name in names or OPTIONS}
        place = 1 + [each.name for each in own].index("model")
        signature = inspect.Signature([*own[:place], *added.values(), *own[place:]])
        vars(run)["__signature__"] = signature  # which Typer reads
        return run

    return decorate


def _parameter(name: str, option: Option) -> inspect.Parameter:
    """An option as a parameter of a command."""
    kind: Any = list[str] if option.repeatable else value_type(name)
    described = typer.Option(
        f"--{(option.flag or name).replace('_', '-')}",
        metavar=option.metavar,
        help=option.help,
        rich_help_panel=option.group,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, described],
    )
