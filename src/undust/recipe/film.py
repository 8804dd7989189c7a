"""Everything that a film is a function of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from undust.errors import UndustError
from undust.recipe.files import DIGITS, ImageRef, PathText
from undust.recipe.names import SamplerName, ScheduleName
from undust.recipe.plain import Frozen, reason

MAX_PIXELS = 2**26  # of all frames together


class FileRef(Frozen):
    """A file or folder, and the hash of its content."""

    path: PathText = Field(min_length=1, max_length=4096)
    hash: str = Field(default="", max_length=DIGITS)


class KnownViews(Frozen):
    """Views of the scene that lead a film, by λ of a table (NVS-Solver, You et al. 2025).

    depth: the depth map of the first frame, by which it is warped along an orbit; or folder: warped
    frames and masks from elsewhere; numbers: what the depth map has; degrees: of the orbit in all,
    positive to the right; distance: of the point that it goes around, in the unit of the depths;
    form, weight_clamp: as of `LambdaGuidance`; derived: the table's roots as derived.
    """

    kind = "known views"
    depth: FileRef | None = None
    folder: FileRef | None = None
    numbers: Literal["depth", "disparity"] = "depth"
    degrees: float = Field(24.0, ge=-360, le=360)
    distance: float | None = Field(None, gt=0)
    form: Literal["quantile", "blend"] = "quantile"
    weight_clamp: float = Field(0.2, ge=0, le=1)
    derived: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.depth is None) == (self.folder is None):
            raise ValueError("either a depth map or a folder of known views is needed")
        return self


class FilmRecipe(Frozen):
    """One film: the same recipe on the same machine gives the same frames.

    picture: the first frame; fps: frames a second, that the model is told and that the film has;
    motion: the motion bucket, more for more motion; guidance: the scale for the first and the last
    frame, in between it is linear; noise_augmentation: deviation of the noise on the first frame,
    of pixels in [-1, 1]; decoded_frames: how many frames are decoded together: each sees its
    neighbours among them, and memory grows with them; known: views that lead the film.
    """

    picture: ImageRef
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
    known: KnownViews | None = Field(None, exclude_if=lambda known: known is None)
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
        return recipe
