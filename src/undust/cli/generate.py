"""`undust generate` and `undust rerun`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undust.cli.options import (
    BUILT_IN,
    Device,
    Guidance,
    Json,
    ModelOption,
    Out,
    Precision,
    Sampler,
    Schedule,
    Steps,
    Vae,
)
from undust.cli.output import Output
from undust.cli.progress import paint
from undust.errors import UndustError

if TYPE_CHECKING:
    from torch import Tensor

    from undust.recipe.recipe import Recipe


OVER, MORE = "A picture to begin from", "What goes into the model"  # groups of options


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to paint; `-` reads lines from stdin."),
    ] = None,
    model: ModelOption = BUILT_IN,
    negative: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the picture should stay away from.")
    ] = None,
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
        typer.Option(
            metavar="WxH",
            help="Pixels, such as 64x64.  [default: the picture's begun from, or as trained]",
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(metavar="N", max=10_000, help="Pictures a prompt, seeds one apart.")
    ] = 1,
    noise: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Begin from the noise that `undust invert` found."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(metavar="PICTURE", help="Begin from a picture.", rich_help_panel=OVER),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            metavar="F",
            help="How much is painted over, 0 to 1; at 1 nothing of it stays.  "
            "[default: 0.75; 1 with a mask]",
            rich_help_panel=OVER,
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="PICTURE",
            help="As large as it; white, or a transparent hole, is painted anew; black stays.",
            rich_help_panel=OVER,
        ),
    ] = None,
    extend: Annotated[
        str | None,
        typer.Option(
            metavar="L,T,R,B",
            help="Pixels to paint around it: left, top, right, bottom.",
            rich_help_panel=OVER,
        ),
    ] = None,
    upscale: Annotated[
        str | None,
        typer.Option(
            metavar="F[@STRENGTH]",
            help="Then a second pass, F times as large.  [default strength: 0.3]",
            rich_help_panel=OVER,
        ),
    ] = None,
    noise_level: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Dust on a picture that an upscaling model enlarges.  [default: 20]",
            rich_help_panel=OVER,
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:WEIGHT]", help="Put a LoRA in. Often.", rich_help_panel=MORE),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH=PICTURE[@WEIGHT][:START-END]",
            help="Show a map to a ControlNet; of canny:PICTURE it sees the edges. Often.",
            rich_help_panel=MORE,
        ),
    ] = None,
    embedding: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[=WORD]",
            help="A word that was learnt by textual inversion. Often.",
            rich_help_panel=MORE,
        ),
    ] = None,
    clip_skip: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Last layers of the text encoder to leave out; A1111 counts one more.",
            rich_help_panel=MORE,
        ),
    ] = None,
    refiner: Annotated[
        str | None,
        typer.Option(
            metavar="PATH[@SHARE]",
            help="A model for the last steps, after that share.  [default share: 0.8]",
            rich_help_panel=MORE,
        ),
    ] = None,
    framing: Annotated[
        str | None,
        typer.Option(
            metavar="original=WxH,crop=LxT,target=WxH",
            help="What Stable Diffusion XL is told of sizes.  [default: the picture's]",
            rich_help_panel=MORE,
        ),
    ] = None,
    vae: Vae = None,
    dtype: Precision = None,
    device: Device = None,
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
    from undust.model import load

    loaded = load(model, dtype=dtype, device=device, vae=vae)
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
        init=init,
        strength=strength,
        mask=mask,
        extend=extend,
        upscale=upscale,
        noise_level=noise_level,
        loras=lora or (),
        controls=control or (),
        embeddings=embedding or (),
        clip_skip=clip_skip,
        refiner=refiner,
        framing=framing,
    )
    batches = list(loop.batches(loaded, recipes, exact=exact))
    if noise is None:
        paint(loaded, batches, output, json)
        return
    given = _noise(noise)
    batches = [[each.model_copy(update={"given_noise": True}) for each in b] for b in batches]
    paint(loaded, batches, output, json, noise=given)


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
    from undust.model import load
    from undust.recipe.recipe import between

    loaded = load(model)
    start = loaded.recipes(first, steps=steps, guidance=guidance, seed=seed)[0]
    seed = start.seed if seed_to is None else seed_to
    end = loaded.recipes(last or first, steps=steps, guidance=guidance, seed=seed)[0]
    way = between(start, end, count)
    paint(loaded, list(loop.batches(loaded, way)), output, json, columns=count)


def rerun(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A picture that undust made.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="Where its model is now.  [default: where it was]"),
    ] = None,
    vae: Vae = None,
    device: Device = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Make a picture again from the recipe in it.

    The model, pictures and weights that it was made from are looked for where they were, and beside
    it.
    """
    from undust.formats.recipe_png import read_recipe

    fields = read_recipe(picture)
    output = Output.choose(out, 1)
    from undust.model import load
    from undust.recipe.files import beside
    from undust.recipe.recipe import Recipe

    told = Recipe.read(fields)
    recipe = Recipe.read(beside(fields, picture.parent))
    vae = vae or (recipe.vae and recipe.vae.path)
    place = model or _model_of(told, picture)
    loaded = load(place, dtype=recipe.precision, device=device, vae=vae)
    paint(loaded, [loaded.rerun_batch(recipe)], output, json, again=told)


def _model_of(recipe: Recipe, picture: Path) -> str:
    """Where the model of a picture is: inside undust, where it was, or beside the picture."""
    from undust.formats.hub import is_name
    from undust.formats.locate import built_in, find
    from undust.recipe.files import is_there

    was = recipe.model_path
    names = [Path(was).name, recipe.model, f"{recipe.model}.safetensors"]
    places = [was, *(str(picture.parent / name) for name in names if name)]
    if not was and recipe.model in built_in():
        return recipe.model
    for place in filter(is_there, filter(None, places)):
        return place
    if is_name(was.partition("@")[0]):
        with suppress(UndustError):
            find(was)
            return was
    raise UndustError(
        f"{picture} was made with the model '{recipe.model}' ({recipe.model_hash}), which is "
        f"neither {was or 'inside undust'} nor beside it; say where it is with --model"
    )


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
