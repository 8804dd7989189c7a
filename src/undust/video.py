"""A model of films, loaded and used: pictures set in motion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undust.errors import UndustError, quoted
from undust.generation.animation import Film, decode_film, sample_film
from undust.generation.film_options import FirstFrame, film_fields, with_first_frame
from undust.generation.loop import Step
from undust.latent.video import VideoModel, frames_that_fit
from undust.recipe.film import FilmRecipe
from undust.version import __version__


class VideoDiffusion(VideoModel):
    """A latent diffusion model of films, as returned by `undust.load_video`."""

    def recipe(self, picture: FirstFrame, **options: Any) -> FilmRecipe:
        """The recipe of a film that begins with a picture; for the options see `FilmRecipe`.

        picture: a file, an image or a `Picture`, whose recipe it keeps; size: WIDTHxHEIGHT, by
        default the model's, to which the picture is resized and cropped; guidance: one number, or
        those for the first and the last frame; known: a `KnownViews` or its fields. Raises
        UndustError for invalid values and for files that cannot be read.
        """
        width, height = self.size
        usual = {"width": width, "height": height, "frames": self.unet.config.num_frames}
        fields = {**usual, **film_fields(picture, options)}
        together = min(frames_that_fit(fields["width"], fields["height"]), fields["frames"])
        recipe = FilmRecipe.read(
            {
                "decoded_frames": together,
                **fields,
                "precision": self.precision,
                "engine": self.engine,
                "low_memory": self.low_memory,
                "model": self.name,
                "model_path": self.path,
                "model_hash": self.hash,
                "undust": __version__,
            }
        )
        self.latent_shape(recipe.width, recipe.height)
        return recipe

    def steps(self, recipe: FilmRecipe, *, noise: Tensor | None = None) -> Iterator[Step]:
        """Samples the film of a recipe and yields each step; x and x0 are [1, F, C, h, w].

        Raises UndustError for a recipe of another model.
        """
        if recipe.model_hash not in ("", self.hash):
            raise UndustError(
                f"the film was made with the model {quoted(recipe.model)} ({recipe.model_hash}), "
                f"not with {self.name} ({self.hash})"
            )
        return sample_film(self, recipe, noise)

    def animate(self, picture: FirstFrame, *, noise: Tensor | None = None, **options: Any) -> Film:
        """A film that begins with a picture; the arguments are those of `recipe` and `steps`.

        noise: unit-variance start [F, C, h, w] in place of the seed's noise.
        """
        return self.rerun(self.recipe(picture, **options), noise=noise)

    def rerun(
        self,
        recipe: FilmRecipe,
        *,
        picture: FirstFrame | None = None,
        noise: Tensor | None = None,
    ) -> Film:
        """The film of a recipe; picture: its first frame, where that is in no file."""
        if picture is not None:
            recipe = with_first_frame(recipe, picture)
        *_, last = self.steps(recipe, noise=noise)
        return decode_film(recipe, last)


def load_video(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    engine: str = "auto",
    low_memory: bool | None = None,
) -> VideoDiffusion:
    """A model of films, such as Stable Video Diffusion: a diffusers folder, a file or org/name.

    The options are those of `undust.load`. Raises UndustError for an incomplete model and for one
    of pictures.
    """
    return VideoDiffusion.load(
        name_or_path, dtype=dtype, device=device, engine=engine, low_memory=low_memory
    )
