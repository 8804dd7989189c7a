"""The options that several commands take, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

BUILT_IN = "emoji"

_WHAT = "A built-in model, a diffusers folder, a Stable Diffusion checkpoint, or org/name."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=_WHAT)]
ModelOption = Annotated[str, typer.Option(metavar="NAME|PATH", help=_WHAT)]
Precision = Annotated[
    Literal["fp32", "fp16", "bf16"] | None,
    typer.Option(help="Of the weights in memory.  [default: fp32]"),
]
Vae = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="A first stage to use instead of the model's own."),
]
Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="Where to compute, such as cuda.  [default: cpu]")
]
Steps = Annotated[
    int | None, typer.Option(metavar="N", help="Steps from dust to picture.  [default: 20]")
]
Guidance = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        help="How closely to follow the prompt.  [default: the model's: 4; 7.5 or 5 for SD, XL]",
    ),
]
Sampler = Annotated[
    str | None, typer.Option(metavar="NAME", help="See `undust samplers`.  [default: deis]")
]
Schedule = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|σ,…",
        help="See `undust schedules`.  [default: karras; trailing from noise alone]",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH|DIR", help="A .png, .jpg or .webp file, or a folder.  [default: undust-out]"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON for each picture.")]
