"""The options of a film: what can be settled, and found wrong, before a model is loaded."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from undust.generation.known_views import resolved_views
from undust.latent.references import image_of, resolved_image
from undust.recipe.files import ImageRef
from undust.recipe.film import FilmRecipe
from undust.recipe.request import read_size

ANY_MODEL = {"width": 64, "height": 64, "frames": 3, "decoded_frames": 1}  # in place of a model's


def film_fields(
    picture: str | Path | Image.Image | ImageRef, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of a film's recipe that are known without its model; files have their hashes.

    options: fields of `FilmRecipe`; size: WIDTHxHEIGHT in place of width and height; guidance: one
    number or two; known: a `KnownViews` or its fields. The result as options gives itself. Raises
    UndustError for invalid values and for files that cannot be read.
    """
    fields: dict[str, Any] = {"seed": random.SystemRandom().randrange(2**32), **options}
    if (size := fields.pop("size", None)) is not None:
        fields["width"], fields["height"] = read_size(size)
    if "guidance" in fields and not isinstance(fields["guidance"], tuple | list):
        fields["guidance"] = (fields["guidance"],) * 2
    known = fields.pop("known", None)
    fields["picture"] = ref = resolved_image(ImageRef.of(picture))
    recipe = FilmRecipe.read({**ANY_MODEL, **fields})
    fields = {name: getattr(recipe, name) for name in fields}
    if known is not None:
        fields["known"] = resolved_views(known, image_of(ref), fields.get("frames"))
        FilmRecipe.read({**ANY_MODEL, **fields})
    return fields
