"""Everything that a picture is a function of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES, listed
from undust.errors import UndustError
from undust.generation.guides import Guide, checked, read_guide, reason

LARGEST = 4096 * 4096  # pixels painted at once
SEEDS = 2**63


class Toward(BaseModel):
    """Another prompt and seed, and what part of the way to them a picture lies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(max_length=10_000)
    seed: int = Field(ge=0, lt=SEEDS)
    part: float = Field(ge=0, le=1)


class Recipe(BaseModel):
    """One picture: the same recipe on the same machine gives the same bytes.

    `batch` and `place` say how many pictures were painted together and which of them this one
    was: a processor may round differently for another batch size, by 1/255 at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(max_length=10_000)
    negative: str = Field("", max_length=10_000)
    steps: int = Field(20, ge=1, le=1000)
    guidance: float = Field(4.0, ge=0, le=1000, allow_inf_nan=False)
    sampler: str = "deis"
    schedule: str = Field("karras", max_length=20_000)
    seed: int = Field(ge=0, lt=SEEDS)
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    batch: int = Field(1, ge=1, le=1024)
    place: int = Field(0, ge=0)
    given_noise: bool = False
    guides: tuple[SerializeAsAny[Guide], ...] = Field(
        (), max_length=64, exclude_if=lambda guides: not guides
    )
    toward: Toward | None = Field(None, exclude_if=lambda toward: toward is None)
    model: str = ""
    model_hash: str = ""
    undust: str = ""

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, name: str) -> str:
        SAMPLERS[name]
        return name

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, schedule: str) -> str:
        if listed(schedule) is None:
            SCHEDULES[schedule]
        return schedule

    @model_validator(mode="before")
    @classmethod
    def _steps_as_listed(cls, fields: object) -> object:
        """A list of σ says how many steps there are."""
        match fields:
            case {"steps": _}:
                return fields
            case {"schedule": str(schedule)} if (levels := listed(schedule)) is not None:
                return {**cast("dict[str, object]", fields), "steps": len(levels) - 1}
            case _:
                return fields

    @field_validator("guides", mode="before")
    @classmethod
    def _read_guides(cls, given: object) -> object:
        if isinstance(given, list | tuple):
            return tuple(read_guide(each) for each in cast("list[object]", given))
        return given

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """The recipe in plain values. Raises UndustError naming the field that cannot be."""
        try:
            recipe = cls.model_validate(dict(fields))
        except ValidationError as error:
            raise UndustError(reason(error)) from None
        checked(recipe.guides, recipe.sampler)
        if recipe.batch * recipe.width * recipe.height > LARGEST:
            together = f" for {recipe.batch} at once" if recipe.batch > 1 else ""
            raise UndustError(
                f"size: {recipe.width}x{recipe.height} is too large{together}; "
                "4096x4096 pixels are the most"
            )
        if recipe.place >= recipe.batch:
            raise UndustError(f"place: {recipe.place} is not in a batch of {recipe.batch}")
        return recipe

    @property
    def settings(self) -> tuple[object, ...]:
        """What pictures painted in one batch have in common."""
        return (
            self.steps,
            self.guidance,
            self.guides,
            self.sampler,
            self.schedule,
            self.width,
            self.height,
        )


def between(first: Recipe, last: Recipe, count: int) -> list[Recipe]:
    """`count` recipes, at least 2, from the prompt and seed of one to those of the other.

    Raises UndustError for recipes that differ in anything else.
    """
    if first.settings != last.settings or first.negative != last.negative:
        raise UndustError("interpolation: the ends may differ in prompt and seed alone")
    if count < 2:
        raise UndustError(f"count: {count} is too few; the two ends are two")
    ways = [
        Toward(prompt=last.prompt, seed=last.seed, part=place / (count - 1))
        for place in range(count)
    ]
    return [first.model_copy(update={"toward": way}) for way in ways]
