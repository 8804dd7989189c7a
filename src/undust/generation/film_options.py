"""The options of a film: what can be settled, and found wrong, before a model is loaded."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from undust.errors import UndustError
from undust.formats.lambda_files import read_table
from undust.generation.known_views import resolved_views
from undust.generation.loop import Picture
from undust.generation.options import MAX_PIXEL_RATIO, recipes
from undust.latent.model import LatentModel
from undust.latent.references import image_of, resolved_image
from undust.recipe.files import ImageRef
from undust.recipe.film import FilmRecipe
from undust.recipe.recipe import Recipe
from undust.recipe.request import SEEDS, read_size

# In place of the model's.
ANY_MODEL = {"width": 64, "height": 64, "frames": 3, "decoded_frames": 1}
FirstFrame = str | Path | Image.Image | ImageRef | Picture


def film_fields(picture: FirstFrame | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a film's recipe that are known without its model; files have their hashes.

    picture: None for one that is made later; options: fields of `FilmRecipe`; size: WIDTHxHEIGHT
    in place of width and height; guidance: one number or two; known: a `KnownViews` or its fields.
    The result as options gives itself. Raises UndustError for invalid values and for files that
    cannot be read.
    """
    fields: dict[str, Any] = {"seed": random.SystemRandom().randrange(2**32), **options}
    if (size := fields.pop("size", None)) is not None:
        fields["width"], fields["height"] = read_size(size)
    if "guidance" in fields and not isinstance(fields["guidance"], tuple | list):
        fields["guidance"] = (fields["guidance"],) * 2
    known = fields.pop("known", None)
    if isinstance(picture, Picture):
        fields["picture_recipe"], picture = picture.recipe, picture.image
    if picture is not None:
        fields["picture"] = resolved_image(ImageRef.of(picture))
    unknown = {**ANY_MODEL, "picture": ImageRef(path="")}
    recipe = FilmRecipe.read({**unknown, **fields})
    fields = {name: getattr(recipe, name) for name in fields}
    if known is not None:
        fields["known"] = resolved_views(known, image_of(fields["picture"]), fields.get("frames"))
        recipe = FilmRecipe.read({**unknown, **fields})
        if recipe.known and recipe.known.table and "frames" in fields:
            any_levels = torch.arange(recipe.steps, -1.0, -1.0)
            read_table(Path(recipe.known.table.path), any_levels, recipe.frames)
    return fields


def first_frame_recipe(model: LatentModel, prompt: str, seed: int, size: tuple[int, int]) -> Recipe:
    """The recipe of a film's first frame by a model of pictures; seed, size: of the film.

    It has the film's size if the model can make that and it is at most 6 times what the model was
    trained on, and else the model's. Raises UndustError as `recipes` does.
    """
    try:
        model.latent_shape(*size)
        fits = math.prod(size) <= MAX_PIXEL_RATIO * math.prod(model.size)
    except UndustError:
        fits = False
    [recipe] = recipes(model, prompt, {"seed": seed % SEEDS, "size": size if fits else model.size})
    return recipe


def with_first_frame(recipe: FilmRecipe, picture: FirstFrame) -> FilmRecipe:
    """The recipe with its first frame, which was made again and is in no file.

    A RuntimeWarning says if it is not to the byte what it was, as one by another machine may be.
    """
    image = picture.image if isinstance(picture, Picture) else picture
    ref = resolved_image(ImageRef.of(image))
    if ref.hash != recipe.picture.hash:
        warnings.warn(
            "the first frame is not to the byte what it was, so the film is another too",
            RuntimeWarning,
            stacklevel=2,
        )
    return recipe.model_copy(update={"picture": ref})
