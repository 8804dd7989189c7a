"""A model of films, loaded and used: pictures set in motion."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from undust.errors import UndustError, quoted
from undust.generation.animation import Film, decode_film, sample_film
from undust.generation.known_views import resolved_views
from undust.generation.loop import Step
from undust.latent.references import image_of, resolved_image
from undust.latent.video import VideoModel, frames_that_fit
from undust.recipe.files import ImageRef
from undust.recipe.film import FilmRecipe
from undust.recipe.request import read_size
from undust.version import __version__


class VideoDiffusion(VideoModel):
    """A latent diffusion model of films, as returned by `undust.load_video`."""

    def recipe(self, picture: str | Path | Image.Image | ImageRef, **options: Any) -> FilmRecipe:
        """The recipe of a film that begins with a picture; for the options see `FilmRecipe`.

        size: WIDTHxHEIGHT, by default the model's, to which the picture is resized and cropped;
        guidance: one number, or those for the first and the last frame; known: a `KnownViews` or
        its fields. Raises UndustError for invalid values and for files that cannot be read.
        """
        ref = resolved_image(ImageRef.of(picture))
        size = options.pop("size", None)
        width, height = self.size if size is None else read_size(size)
        if not isinstance(guidance := options.pop("guidance", (1.0, 3.0)), tuple | list):
            guidance = (guidance, guidance)
        frames = options.pop("frames", self.unet.config.num_frames)
        if (known_views := options.pop("known", None)) is not None:
            options["known"] = resolved_views(known_views, image_of(ref))
        together = min(frames_that_fit(width, height), frames if isinstance(frames, int) else 1)
        known = {
            "seed": random.SystemRandom().randrange(2**32),
            "decoded_frames": max(together, 1),
            **options,
        }
        recipe = FilmRecipe.read(
            {
                **known,
                "picture": ref,
                "width": width,
                "height": height,
                "frames": frames,
                "guidance": guidance,
                "precision": self.precision,
                "engine": self.engine,
                "low_memory": self.low_memory,
                "model": self.name,
                "model_path": self.path,
                "model_hash": self.hash,
                "undust": __version__,
            }
        )
        self.latent_shape(width, height)
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

    def animate(
        self,
        picture: str | Path | Image.Image | ImageRef,
        *,
        noise: Tensor | None = None,
        **options: Any,
    ) -> Film:
        """A film that begins with a picture; the arguments are those of `recipe` and `steps`.

        noise: unit-variance start [F, C, h, w] in place of the seed's noise.
        """
        return self.rerun(self.recipe(picture, **options), noise=noise)

    def rerun(self, recipe: FilmRecipe, *, noise: Tensor | None = None) -> Film:
        """The film of a recipe."""
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
