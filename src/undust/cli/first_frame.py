"""The first frame of a film, generated from a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undust.cli import console
from undust.cli.loading import model_of, opened_model

if TYPE_CHECKING:
    from undust.generation.loop import Picture
    from undust.pipeline import LatentDiffusion
    from undust.recipe.recipe import Recipe


@dataclass(frozen=True)
class Prompted:
    """A prompt, and the name or path of the model of pictures that it is for."""

    prompt: str
    model: str

    def opened(self, **loading: Any) -> Callable[[int, tuple[int, int]], Picture]:
        """Loads the model; gives a function from the film's seed and size to its first frame."""
        from undust.generation.film_options import first_frame_recipe

        model = opened_model(self.model, **loading)
        model.recipes(self.prompt)  # or its error, before the model of films is loaded

        def made(seed: int, size: tuple[int, int]) -> Picture:
            return _generated(model, first_frame_recipe(model, self.prompt, seed, size))

        return made


def picture_again(recipe: Recipe, film: Path, device: str | None) -> Picture:
    """The first frame of a film in a file, generated again from its recipe."""
    model = opened_model(
        model_of(recipe, film, "it made the first frame; put it at one of these places"),
        dtype=recipe.precision,
        device=device,
        vae=recipe.vae and recipe.vae.path,
        engine=recipe.engine,
        low_memory=recipe.low_memory,
    )
    return _generated(model, recipe)


def _generated(model: LatentDiffusion, recipe: Recipe) -> Picture:
    """The picture of a recipe, with a progress bar."""
    from undust.generation import loop

    batch = model.rerun_batch(recipe)
    last = None
    with console.Progress(recipe.total_steps, "steps") as progress:
        for last in loop.sample_batch(model, batch):
            progress.update(last.index + 1, console.shorten(recipe.prompt, 30))
    assert last is not None
    return loop.decode(batch, last)[recipe.place]
