"""`undust generate` and `undust rerun`."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undust.cli import show
from undust.cli.options import BUILT_IN, Guidance, Json, ModelOption, Out, Sampler, Schedule, Steps
from undust.cli.output import Output
from undust.errors import UndustError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from undust.generation.loop import Picture
    from undust.generation.recipe import Recipe
    from undust.model import LatentDiffusion

SHEET = 4096  # pixels, the longest side of a contact sheet


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to paint; `-` reads lines from stdin."),
    ] = None,
    model: ModelOption = BUILT_IN,
    negative: Annotated[
        str, typer.Option(metavar="TEXT", help="What the picture should stay away from.")
    ] = "",
    steps: Steps = None,
    guidance: Guidance = None,
    guide: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:KEY=VALUE,…]",
            help="Guide in another way; see `undust guidances`. Often.",
        ),
    ] = None,
    sampler: Sampler = None,
    schedule: Schedule = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Which dust; any, unless given.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Pixels, such as 64x64.  [default: as trained]"),
    ] = None,
    count: Annotated[
        int, typer.Option(metavar="N", max=10_000, help="Pictures a prompt, seeds one apart.")
    ] = 1,
    noise: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Begin from the noise that `undust invert` found."),
    ] = None,
    out: Out = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Paint one at a time: the same bytes as each picture made alone."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Paint pictures from words."""
    asked = list(_prompts(prompts or []))
    if not asked:
        raise UndustError("no prompt: say what to paint, such as undust generate 'a smiling cat'")
    width_and_height = parse_size(size) if size is not None else None
    output = Output.choose(out, len(asked) * count)
    from undust.generation import loop
    from undust.generation.guides.prompts import Asking
    from undust.model import load

    loaded = load(model)
    recipes = loaded.recipes(
        asked,
        negative=negative,
        steps=steps,
        guidance=guidance,
        guides=guide or (),
        sampler=sampler,
        schedule=schedule,
        seed=seed,
        size=width_and_height,
        count=count,
    )
    guided = [each.prompt for each in recipes[0].guides if isinstance(each, Asking)]
    _warn_of_overflow(loaded, [*dict.fromkeys(asked), negative, *guided])
    batches = list(loop.batches(recipes, exact=exact))
    if noise is None:
        _paint(loaded, batches, output, json)
        return
    given = _noise(noise)
    batches = [[each.model_copy(update={"given_noise": True}) for each in b] for b in batches]
    _paint(loaded, batches, output, json, noise=given)


def interpolate(
    first: Annotated[str, typer.Argument(metavar="FROM", help="The prompt to begin with.")],
    last: Annotated[
        str | None,
        typer.Argument(metavar="TO", help="The prompt to end with.  [default: the same]"),
    ] = None,
    model: ModelOption = BUILT_IN,
    count: Annotated[
        int, typer.Option(metavar="N", min=2, max=1000, help="Pictures, the two ends included.")
    ] = 9,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed to begin with; any, unless given.")
    ] = None,
    seed_to: Annotated[
        int | None, typer.Option(metavar="N", help="Seed to end with.  [default: the same]")
    ] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Paint the way from one prompt or seed to another."""
    if last is None and seed_to is None:
        raise UndustError("nothing to go to: give a second prompt, or --seed-to N")
    output = Output.choose(out, count)
    from undust.generation import loop
    from undust.generation.recipe import between
    from undust.model import load

    loaded = load(model)
    start = loaded.recipes(first, steps=steps, guidance=guidance, seed=seed)[0]
    seed = start.seed if seed_to is None else seed_to
    end = loaded.recipes(last or first, steps=steps, guidance=guidance, seed=seed)[0]
    _warn_of_overflow(loaded, [*dict.fromkeys([start.prompt, end.prompt])])
    _paint(loaded, list(loop.batches(between(start, end, count))), output, json, columns=count)


def rerun(
    picture: Annotated[
        Path, typer.Argument(metavar="PICTURE.png", help="A picture that undust made.")
    ],
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="Where its model is, if it is not a built-in one."),
    ] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Make a picture again from the recipe in it."""
    from undust.formats.recipe_png import read_recipe

    fields = read_recipe(picture)
    output = Output.choose(out, 1)
    from undust.generation.recipe import Recipe
    from undust.model import built_in, load

    recipe = Recipe.read(fields)
    if model is None and recipe.model not in built_in():
        raise UndustError(
            f"{picture} was made with the model '{recipe.model}' ({recipe.model_hash}), which "
            "does not come with undust; say where it is with --model"
        )
    loaded = load(model or recipe.model)
    _paint(loaded, [loaded.rerun_batch(recipe)], output, json, place=recipe.place)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in "64x48". Raises UndustError for anything else."""
    found = re.fullmatch(r"(\d{1,6})[xX×](\d{1,6})", text.strip())
    if not found:
        raise UndustError(f"--size: '{text}' is not WIDTHxHEIGHT in pixels, such as 64x64")
    return int(found[1]), int(found[2])


def _prompts(given: Iterable[str]) -> Iterator[str]:
    for prompt in given:
        if prompt != "-":
            yield prompt
            continue
        try:
            yield from filter(None, map(str.strip, sys.stdin))
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


def _warn_of_overflow(model: LatentDiffusion, prompts: Iterable[str]) -> None:
    for prompt in prompts:
        if lost := model.tokenizer.overflow(prompt):
            show.note(
                f"'{show.shorten(prompt, 30)}' is too long for the model's "
                f"{model.tokenizer.length} tokens; left out: '{show.shorten(lost, 60)}'"
            )


def _paint(
    model: LatentDiffusion,
    batches: Sequence[Sequence[Recipe]],
    output: Output,
    json: bool,
    place: int | None = None,
    noise: Tensor | None = None,
    columns: int | None = None,
) -> None:
    """Paints the batches and writes each picture, or only that in one place, when it is done.

    noise: unit-variance start [C, h, w] of every picture instead of what their seeds draw; columns:
    of the contact sheet.
    """
    total = sum(len(batch) for batch in batches) if place is None else 1
    thumbnails: list[Image.Image] = []
    began = time.monotonic()
    with show.Progress(sum(batch[0].steps for batch in batches), "steps") as progress:
        try:
            for picture, seconds in _pictures(model, batches, progress, place, noise):
                path = output.save(picture)
                thumbnails.append(_thumbnail(picture.image, total))
                progress.line(_json(picture, path, seconds) if json else str(path))
        except KeyboardInterrupt:
            made = f"; {len(thumbnails)} of {total} pictures went to {output.folder}"
            raise KeyboardInterrupt("stopped" + made * bool(thumbnails)) from None
    if total > 1:
        from undust.pictures import grid

        sheet = output.save_sheet(grid(thumbnails, columns))
        (show.summary if json else show.line)(str(sheet))
    recipe = batches[0][0]
    made = f"{total} pictures" if total > 1 else f"seed {recipe.seed}"
    show.summary(f"{made}, {show.seconds(time.monotonic() - began)}: {show.settings(recipe)}")


def _pictures(
    model: LatentDiffusion,
    batches: Sequence[Sequence[Recipe]],
    progress: show.Progress,
    place: int | None,
    noise: Tensor | None,
) -> Iterator[tuple[Picture, float]]:
    """Each picture and the seconds that it took; one of a batch takes its share of the batch."""
    from undust.generation import loop

    done = 0
    for batch in batches:
        began = time.monotonic()
        more = f" and {len(batch) - 1} more" if len(batch) > 1 and place is None else ""
        start = None if noise is None else noise.expand(len(batch), *noise.shape[-3:])
        for step in loop.paint(model, batch, start):
            # An adaptive sampler takes as many steps as it needs; its index says how far it is.
            progress.update(done + step.index + 1, show.shorten(batch[0].prompt, 30) + more)
            if step.index + 1 < step.total:
                continue
            done += step.total
            pictures = loop.finish(batch, step)
            pictures = pictures if place is None else [pictures[place]]
            seconds = (time.monotonic() - began) / len(pictures)
            for picture in pictures:
                yield picture, seconds


def _thumbnail(image: Image.Image, total: int) -> Image.Image:
    """The picture, small enough for a contact sheet of that many."""
    side = SHEET // math.ceil(math.sqrt(total))
    small = image.copy()
    small.thumbnail((side, side))
    return small


def _json(picture: Picture, path: Path, seconds: float) -> str:
    recipe = picture.recipe.model_dump(exclude={"batch", "place", "given_noise", "undust"})
    return show.as_json({"path": str(path), "seconds": round(seconds, 3), **recipe})
