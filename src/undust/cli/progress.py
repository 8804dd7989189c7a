"""Generation of batches of recipes to files, with a progress bar."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from undust.cli import console
from undust.cli.output import Output

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from undust.generation.loop import Picture
    from undust.pipeline import LatentDiffusion
    from undust.recipe.recipe import Recipe

SHEET = 4096  # pixels, the longest side of a contact sheet


def generate_files(
    model: LatentDiffusion,
    batches: Sequence[Sequence[Recipe]],
    output: Output,
    json: bool,
    again: Recipe | None = None,
    noise: Tensor | None = None,
    columns: int | None = None,
) -> None:
    """Generates the batches and writes each picture when it is done.

    again: write only the picture of this recipe, with it; noise: unit-variance start [C, h, w] of
    every picture in place of their seeds'; columns: of the contact sheet.
    """
    output.check(again or batches[0][0])
    total = sum(len(batch) for batch in batches) if again is None else 1
    thumbnails: list[Image.Image] = []
    began = time.monotonic()
    with console.Progress(sum(batch[0].total_steps for batch in batches), "steps") as progress:
        try:
            begun = partial(output.note_replaced, progress.note)
            for picture, seconds in _pictures(model, batches, progress, begun, again, noise):
                path = output.save(picture)
                thumbnails.append(_thumbnail(picture.image, total))
                progress.line(_json(picture, path, seconds) if json else str(path))
        except KeyboardInterrupt:
            made = f"; {len(thumbnails)} of {total} pictures are in {output.folder}"
            raise KeyboardInterrupt("stopped" + made * bool(thumbnails)) from None
    if total > 1:
        from undust.pictures import grid

        sheet = output.save_sheet(grid(thumbnails, columns))
        (console.summary if json else console.line)(str(sheet))
    recipe = batches[0][0]
    made = f"{total} pictures" if total > 1 else f"seed {recipe.seed}"
    took = console.seconds(time.monotonic() - began)
    console.summary(f"{made}, {took}: {console.settings(recipe, recipe.total_steps)}")


def _pictures(
    model: LatentDiffusion,
    batches: Sequence[Sequence[Recipe]],
    progress: console.Progress,
    begun: Callable[[], None],
    again: Recipe | None,
    noise: Tensor | None,
) -> Iterator[tuple[Picture, float]]:
    """Each picture with its time in seconds, that of its batch divided by its pictures.

    begun: called after the first step, before which most of what is wrong shows.
    """
    from undust.generation import loop

    done = 0
    for batch in batches:
        began = time.monotonic()
        more = f" and {len(batch) - 1} more" if len(batch) > 1 and again is None else ""
        start = None if noise is None else noise.expand(len(batch), *noise.shape[-3:])
        for step in loop.sample_batch(model, batch, start):
            if done == step.index == 0:
                begun()
            # An adaptive sampler yields any number of steps; their index is the progress.
            progress.update(done + step.index + 1, console.shorten(batch[0].prompt, 30) + more)
            if step.index + 1 < step.total:
                continue
            done += step.total
            pictures = loop.decode(batch, step)
            if again is not None:
                pictures = [replace(pictures[again.place], recipe=again)]
            seconds = (time.monotonic() - began) / len(pictures)
            for picture in pictures:
                yield picture, seconds


def _thumbnail(image: Image.Image, total: int) -> Image.Image:
    """The picture reduced for a contact sheet of `total` pictures."""
    side = SHEET // math.ceil(math.sqrt(total))
    small = image.copy()
    small.thumbnail((side, side))
    return small


def _json(picture: Picture, path: Path, seconds: float) -> str:
    recipe = picture.recipe.model_dump(exclude={"batch", "place", "given_noise", "undust"})
    return console.as_json({"path": str(path), "seconds": round(seconds, 3), **recipe})
