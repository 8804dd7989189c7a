"""Everything that a film is a function of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from undust.errors import UndustError
from undust.recipe.files import DIGITS, ImageRef, PathText
from undust.recipe.names import SamplerName, ScheduleName
from undust.recipe.plain import Frozen, reason
from undust.recipe.recipe import Recipe

LEARNING_RATE = 0.02  # of posterior sampling, as published
MAX_PIXELS = 2**26  # of all frames together


def _is_none(value: object) -> bool:
    return value is None


class FileRef(Frozen):
    """A file or folder, and the hash of its content; in place of its fields a path may be given."""

    path: PathText = Field(min_length=1, max_length=4096)
    hash: str = Field(default="", max_length=DIGITS)

    @model_validator(mode="before")
    @classmethod
    def _of_path(cls, given: object) -> object:
        return {"path": given} if isinstance(given, str | Path) else given


def _as_recipe(given: object) -> object:
    return Recipe.read(cast("Mapping[str, Any]", given)) if isinstance(given, Mapping) else given


def _as_image(given: object) -> object:
    return given if given is None or isinstance(given, Mapping) else ImageRef.of(given)


class KnownViews(Frozen):
    """Views of the scene that lead a film, by λ of a table (NVS-Solver, You et al. 2025).

    depth: the depth map of the first frame, by which it is warped along an orbit; or folder: warped
    frames and masks from elsewhere; last, last_depth: the film's last frame as the last camera of
    the orbit sees it, of the first one's size, and its depth map; numbers: what the depth maps
    have; degrees: of the orbit in all, positive to the right; distance: of the point that it goes
    around, in the unit of the depths; form, weight_clamp: as of `LambdaGuidance`, or the form
    "posterior" with learning_rate, as of `PosteriorSampling`; table: a file of w, steps × frames,
    in place of a search; derived: the search's roots as derived.
    """

    kind = "known views"
    depth: FileRef | None = None
    folder: FileRef | None = None
    last: Annotated[ImageRef | None, BeforeValidator(_as_image)] = Field(None, exclude_if=_is_none)
    last_depth: FileRef | None = Field(None, exclude_if=_is_none)
    numbers: Literal["depth", "disparity"] = "depth"
    degrees: float = Field(24.0, ge=-360, le=360)
    distance: float | None = Field(None, gt=0)
    form: Literal["quantile", "blend", "posterior"] = "quantile"
    weight_clamp: float = Field(0.2, ge=0, le=1)
    learning_rate: float = Field(LEARNING_RATE, ge=0, exclude_if=lambda rate: rate == LEARNING_RATE)
    table: FileRef | None = Field(None, exclude_if=_is_none)
    derived: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.depth is None) == (self.folder is None):
            raise ValueError("either a depth map or a folder of known views is needed")
        if self.depth is None and (self.last or self.last_depth):
            raise ValueError("a last picture goes with depth maps, not with a folder of views")
        if self.last is not None and self.last_depth is None:
            raise ValueError("the last picture needs a depth map too (last_depth)")
        if self.last is None and self.last_depth is not None:
            raise ValueError("last_depth is the depth map of a last picture, which is not given")
        if self.table is not None and self.derived:
            raise ValueError("derived is of a search, and a table is given")
        return self


class FilmRecipe(Frozen):
    """One film: the same recipe on the same machine gives the same frames.

    picture: the first frame; picture_recipe: its recipe, if it was generated; fps: frames a second,
    that the model is told and that the film has; motion: the motion bucket, more for more motion;
    guidance: the scale for the first and the last frame, in between it is linear;
    noise_augmentation: deviation of the noise on the first frame, of pixels in [-1, 1];
    decoded_frames: how many frames are decoded together: each sees its neighbours among them, and
    memory grows with them; known: views that lead the film.
    """

    picture: ImageRef
    picture_recipe: Annotated[Recipe | None, BeforeValidator(_as_recipe)] = Field(
        None, exclude_if=_is_none
    )
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    frames: int = Field(ge=2, le=1024)
    fps: int = Field(7, ge=1, le=120)
    motion: int = Field(127, ge=0, le=255)
    guidance: tuple[float, float] = (1.0, 3.0)
    noise_augmentation: float = Field(0.02, ge=0, le=10)
    steps: int = Field(25, ge=1, le=1000)
    sampler: SamplerName = "euler"
    schedule: ScheduleName = "karras"
    seed: int = Field(ge=0, lt=2**64)
    decoded_frames: int = Field(ge=1)
    known: KnownViews | None = Field(None, exclude_if=_is_none)
    precision: str = Field("float32", max_length=16)
    engine: str = Field("torch", max_length=64)
    low_memory: bool = False
    model: str = ""
    model_path: str = Field("", max_length=4096)
    model_hash: str = ""
    undust: str = ""

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """The recipe in plain values; UndustError, which names the field, if one is not valid."""
        try:
            recipe = cls.model_validate(dict(fields))
        except ValidationError as error:
            raise UndustError(reason(error)) from None
        if recipe.frames * recipe.width * recipe.height > MAX_PIXELS:
            raise UndustError(
                f"size: {recipe.frames} frames of {recipe.width}x{recipe.height} are too many "
                f"pixels; {MAX_PIXELS:,} together are the most"
            )
        known, sampler = recipe.known, recipe.sampler
        if known is not None and known.form == "posterior" and sampler != "euler":
            raise UndustError(
                f"sampler: the form posterior is a part of euler's steps, not {sampler}'s"
            )
        if recipe.frames < 3 and known is not None and known.last is not None:
            raise UndustError(
                f"frames: {recipe.frames} are the two pictures alone; at least 3 are needed"
            )
        return recipe
