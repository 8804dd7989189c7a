"""`undust generate` and `undust rerun`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undust.cli.animate import rerun_film
from undust.cli.loading import model_of, opened_model
from undust.cli.options import (
    BUILT_IN,
    Device,
    Engine,
    Json,
    LowMemory,
    ModelOption,
    Out,
    Precision,
    Vae,
    request_options,
)
from undust.cli.output import Output
from undust.cli.progress import generate_files
from undust.errors import UndustError
from undust.recipe.request import read_size

if TYPE_CHECKING:
    from torch import Tensor


MAX_COUNT = 10_000  # pictures per prompt


@request_options()
def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="Prompts; `-` reads one per line from stdin."),
    ] = None,
    model: ModelOption = BUILT_IN,
    noise: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Initial noise that `undust invert` found."),
    ] = None,
    vae: Vae = None,
    dtype: Precision = None,
    device: Device = None,
    engine: Engine = "auto",
    low_memory: LowMemory = None,
    out: Out = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="One picture at a time: the same bytes as each picture made alone."
        ),
    ] = False,
    json: Json = False,
    **options: Any,
) -> None:
    """Generate pictures from prompts."""
    texts = list(_prompts(prompts or []))
    if not texts and model == BUILT_IN:
        raise UndustError("no prompt: give one, such as undust generate 'a smiling cat'")
    if "size" in options:
        read_size(options["size"])
    count = options.get("count", 1)
    if count > MAX_COUNT:
        raise UndustError(
            f"--count: {count} is too many; {MAX_COUNT} pictures per prompt are the most"
        )
    output = Output.choose(out, max(len(texts), 1) * count)
    from undust.generation import loop

    loaded = opened_model(
        model, dtype=dtype, device=device, vae=vae, engine=engine, low_memory=low_memory
    )
    recipes = loaded.recipes(texts, **options)
    batches = list(loop.batches(loaded, recipes, exact=exact))
    if noise is None:
        generate_files(loaded, batches, output, json)
        return
    given = _noise(noise)
    batches = [[each.model_copy(update={"given_noise": True}) for each in b] for b in batches]
    generate_files(loaded, batches, output, json, noise=given)


@request_options("seed", "steps", "guidance")
def interpolate(
    first: Annotated[str, typer.Argument(metavar="FROM", help="First prompt.")],
    last: Annotated[
        str | None,
        typer.Argument(metavar="TO", help="Last prompt.  [default: the first]"),
    ] = None,
    model: ModelOption = BUILT_IN,
    count: Annotated[
        int, typer.Option(metavar="N", min=2, max=1000, help="Pictures, the two ends included.")
    ] = 9,
    seed_to: Annotated[
        int | None, typer.Option(metavar="N", help="Last seed.  [default: the first]")
    ] = None,
    out: Out = None,
    json: Json = False,
    **options: Any,
) -> None:
    """Interpolate from one prompt or seed to another."""
    if last is None and seed_to is None:
        raise UndustError("no end of the interpolation: give a second prompt, or --seed-to N")
    output = Output.choose(out, count)
    from undust.generation import loop
    from undust.recipe.recipe import between

    loaded = opened_model(model)
    start = loaded.recipes(first, **options)[0]
    options["seed"] = start.seed if seed_to is None else seed_to
    end = loaded.recipes(last or first, **options)[0]
    way = between(start, end, count)
    generate_files(loaded, list(loop.batches(loaded, way)), output, json, columns=count)


def rerun(
    picture: Annotated[
        Path, typer.Argument(metavar="PICTURE", help="A picture or film that undust made.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH", help="Path or name of its model.  [default: as in the picture]"
        ),
    ] = None,
    vae: Vae = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH|DIR",
            help="A file, or a folder; of a film a .mp4, .webp or .gif file, or a folder for "
            "frames.  [default: undust-out]",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Generate a picture or a film again from the recipe in its file.

    Its model, input pictures and weights are searched for at their old paths and beside the
    picture.
    """
    from undust.formats.film import read_film_recipe

    fields = read_film_recipe(picture)
    if "frames" in fields:
        if vae or json:
            raise UndustError(f"{picture} is a film; --vae and --json are for pictures")
        rerun_film(fields, picture, model, device, out)
        return
    output = Output.choose(out, 1)
    from undust.recipe.files import beside
    from undust.recipe.recipe import Recipe

    try:
        original = Recipe.read(fields)
        recipe = Recipe.read(beside(fields, picture.parent))
    except UndustError as error:
        raise UndustError(f"{picture}: its recipe: {error}") from error
    vae = vae or (recipe.vae and recipe.vae.path)
    place = model or model_of(original, picture)
    loaded = opened_model(
        place,
        dtype=recipe.precision,
        device=device,
        vae=vae,
        engine=recipe.engine,
        low_memory=recipe.low_memory,
    )
    generate_files(loaded, [loaded.rerun_batch(recipe)], output, json, again=original)


def _prompts(given: Iterable[str]) -> Iterator[str]:
    for prompt in given:
        if prompt != "-":
            yield prompt
            continue
        try:
            yield from filter(None, (line.strip("\ufeff \t\r\n") for line in sys.stdin or ()))
        except UnicodeDecodeError as error:
            raise UndustError(f"stdin is not text: {error}") from error


def _noise(path: Path) -> Tensor:
    """The noise [C, h, w] in a file that `undust invert` wrote."""
    from undust.formats import safetensors_file

    tensors = safetensors_file.load(path)
    noise = tensors.get("noise")
    if noise is None or noise.ndim != 3 or not noise.is_floating_point():
        raise UndustError(f"{path} holds no noise [C, h, w], as `undust invert` writes it")
    return noise
