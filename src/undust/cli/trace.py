"""`undust trace`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from undust.cli import console
from undust.cli.loading import opened_model
from undust.cli.options import (
    BUILT_IN,
    Device,
    Engine,
    LowMemory,
    ModelOption,
    OutFolder,
    Precision,
    Vae,
    request_options,
)
from undust.cli.output import FOLDER, check_out_folder, free_place, slug
from undust.recipe.request import read_size

if TYPE_CHECKING:
    from undust.explain.trace import Trace

OPTIONS = (
    *("negative", "steps", "guidance", "guides", "sampler", "schedule", "speed", "seed", "size"),
    *("loras", "embeddings", "clip_skip"),
)


@request_options(*OPTIONS)
def trace(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt.")],
    model: ModelOption = BUILT_IN,
    layers: Annotated[
        Literal["all", "finest"],
        typer.Option(help="Layers in the maps: all, or those with the most pixels alone."),
    ] = "all",
    vae: Vae = None,
    dtype: Precision = None,
    device: Device = None,
    engine: Engine = "auto",
    low_memory: LowMemory = None,
    out: OutFolder = None,
    **options: Any,
) -> None:
    """Show how a picture comes about: noise, estimates, guidance, and where each word acts.

    Writes a strip of the steps, a map of each word, an animation, and the numbers as JSON.
    """
    if "size" in options:
        read_size(options["size"])
    check_out_folder(out)
    from undust import explain

    loaded = opened_model(
        model, dtype=dtype, device=device, vae=vae, engine=engine, low_memory=low_memory
    )
    began = time.monotonic()
    with console.counted("steps", console.shorten(prompt, 30)) as observe:
        found = explain.trace(loaded, prompt, observe=observe, layers=layers, **options)
    recipe = found.picture.recipe
    folder = out or free_place(FOLDER, f"{slug(recipe.prompt)}-{recipe.seed}-trace")
    with console.counted("estimates", "decoding") as observe:
        explain.write_trace(folder, found, observe)
    console.table(["word", "share of attention>", "centre (x, y)>"], _rows(found))
    took = console.seconds(time.monotonic() - began)
    console.summary(f"seed {recipe.seed}, {took}: {console.settings(recipe, recipe.total_steps)}")
    console.line(str(folder))


def _rows(found: Trace) -> list[list[str]]:
    """For each word its share of the attention and the centre of its map."""
    from undust.explain.word_maps import attention_shares, centres_of_mass

    shares = attention_shares(found.maps).tolist()
    centres = centres_of_mass(found.maps).tolist()
    return [
        [word.text, f"{share:.1%}", f"{x:.2f}, {y:.2f}"]
        for word, share, (x, y) in zip(found.words, shares, centres, strict=True)
    ]
