"""Everything that a picture is a function of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from undust.diffusion.schedules import listed
from undust.errors import UndustError
from undust.pictures import LARGEST
from undust.recipe.files import ImageRef, WeightsRef
from undust.recipe.guidance import GuidanceSettings, check_together, read_guidance
from undust.recipe.inputs import (
    Control,
    Embedding,
    Interpolation,
    LoRA,
    Pixels,
    Refiner,
    SizeConditioning,
    Upscale,
)
from undust.recipe.names import SamplerName, ScheduleName
from undust.recipe.plain import Frozen, reason
from undust.recipe.request import OPTIONS

FIRST_VERSION = "0.1.0"
# The fields in which the pictures of a batch may differ.
OWN = {"prompt", "negative", "label", "seed", "batch", "place", "given_noise", "toward"}
STRENGTH = 0.75  # default of image to image without a mask; with one it is 1


def absent(value: object) -> bool:
    """Whether a field is empty, so that it is left out of the JSON."""
    return value is None or value == ()


def option(name: str, default: Any = None) -> Any:
    """A field with the limits of an option of a request; left out of the JSON if it is empty."""
    return Field(default, exclude_if=absent, **OPTIONS[name].limits)


class Recipe(Frozen):
    """One picture: the same recipe on the same machine gives the same bytes.

    batch: the number of pictures that were sampled together, and place: the index of this one; a
    processor may round differently for another batch size, by 1/255 at most. A negative prompt of
    None is no prompt, which some models distinguish from the empty prompt "".
    """

    prompt: str = Field(max_length=10_000)
    negative: str | None = option("negative")
    steps: int = option("steps", 20)
    guidance: float = option("guidance", 4.0)
    sampler: SamplerName = option("sampler", "deis")
    schedule: ScheduleName = option("schedule", "karras")
    deep_cache: int | None = option("deep_cache")
    token_merging: float | None = option("token_merging")
    seed: int = option("seed", ...)
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    batch: int = Field(1, ge=1, le=1024)
    place: int = Field(0, ge=0)
    given_noise: bool = False
    label: str | None = option("label")
    maps: tuple[ImageRef, ...] = option("maps", ())
    guides: tuple[SerializeAsAny[GuidanceSettings], ...] = option("guides", ())
    toward: Interpolation | None = Field(None, exclude_if=absent)
    init: ImageRef | None = option("init")
    strength: float | None = option("strength")
    mask: ImageRef | None = option("mask")
    mask_is_hole: bool = Field(False, exclude_if=lambda hole: not hole)
    extend: tuple[Pixels, Pixels, Pixels, Pixels] | None = option("extend")
    noise_level: int | None = option("noise_level")
    upscale: Upscale | None = option("upscale")
    refiner: Refiner | None = option("refiner")
    framing: SizeConditioning | None = option("framing")
    clip_skip: int | None = option("clip_skip")
    loras: tuple[LoRA, ...] = option("loras", ())
    embeddings: tuple[Embedding, ...] = option("embeddings", ())
    controls: tuple[Control, ...] = option("controls", ())
    precision: str = Field("float32", max_length=16, exclude_if=lambda name: name == "float32")
    engine: str = Field("torch", max_length=64, exclude_if=lambda name: name == "torch")
    low_memory: bool = Field(False, exclude_if=lambda low: not low)
    model: str = ""
    model_path: str = Field("", max_length=4096, exclude_if=lambda path: not path)
    model_hash: str = ""
    vae: WeightsRef | None = Field(None, exclude_if=absent)
    undust: str = ""

    @model_validator(mode="before")
    @classmethod
    def _steps_as_listed(cls, fields: object) -> object:
        """A list of σ determines the number of steps."""
        match fields:
            case {"steps": _}:
                return fields
            case {"schedule": str(schedule)} if (levels := listed(schedule)) is not None:
                return {**cast("dict[str, object]", fields), "steps": len(levels) - 1}
            case _:
                return fields

    @model_validator(mode="before")
    @classmethod
    def _strength_as_usual(cls, fields: object) -> object:
        """The default strength."""
        if not isinstance(fields, dict):
            return fields
        known = cast("dict[str, object]", fields)
        said = {name for name, value in known.items() if value is not None}
        if "init" not in said or said & {"strength", "noise_level"}:
            return fields
        return {**known, "strength": 1.0 if said & {"mask", "extend"} else STRENGTH}

    @field_validator("guides", mode="before")
    @classmethod
    def _read_guides(cls, given: object) -> object:
        if isinstance(given, list | tuple):
            return tuple(read_guidance(each) for each in cast("list[object]", given))
        return given

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """The recipe in plain values; UndustError, which names the field, if one is not valid."""
        try:
            recipe = cls.model_validate(dict(fields))
        except ValidationError as error:
            raise UndustError(reason(error)) from None
        check_together(recipe.guides, recipe.sampler)
        recipe._check_task()
        if recipe.batch * recipe.final_size[0] * recipe.final_size[1] > LARGEST:
            together = f" for {recipe.batch} at once" if recipe.batch > 1 else ""
            raise UndustError(
                f"size: {recipe.width}x{recipe.height} is too large{together}; "
                "4096x4096 pixels are the most"
            )
        if recipe.place >= recipe.batch:
            raise UndustError(f"place: {recipe.place} is not in a batch of {recipe.batch}")
        return recipe

    def _check_task(self) -> None:
        for name in ("strength", "mask", "extend", "noise_level"):
            if getattr(self, name) is not None and self.init is None:
                raise UndustError(f"{name}: it needs a picture to start from (init)")
        if self.mask_is_hole and self.mask is None:
            raise UndustError("mask_is_hole: it needs a mask")
        for name in ("strength", "mask", "extend", "upscale"):
            if self.noise_level is not None and getattr(self, name) is not None:
                raise UndustError(f"{name}: not possible with an upscaling model (noise_level)")
        if self.upscale and (self.mask or self.extend):
            raise UndustError(
                "upscale: the second pass would change what the mask keeps; upscale the finished "
                "picture instead (init)"
            )
        for control in self.controls:
            if control.start >= control.end:
                raise UndustError(f"control: {control.start:g} to {control.end:g} is no interval")

    @property
    def settings(self) -> tuple[object, ...]:
        """The fields that pictures of one batch share."""
        return tuple(getattr(self, name) for name in type(self).model_fields if name not in OWN)

    @property
    def final_size(self) -> tuple[int, int]:
        """Width and height of the result of the last pass."""
        size = self.width, self.height
        return self.upscale.size(*size) if self.upscale else size

    @property
    def first_pass_steps(self) -> int:
        """The number of steps of the first pass: all of them, or with a strength the last ones."""
        return self.steps if self.strength is None else self._share(self.strength)

    @property
    def total_steps(self) -> int:
        """The number of steps of all passes."""
        return self.first_pass_steps + (self._share(self.upscale.strength) if self.upscale else 0)

    def rounded(self, steps: float) -> float:
        """A share of the steps, without the error of its product: 100 × 0.29 is less than 29.

        Recipes of the first version keep that error, so that their pictures stay the same.
        """
        return steps if self.undust == FIRST_VERSION else round(steps, 6)

    def _share(self, strength: float) -> int:
        """The number of steps, the last ones, for a strength."""
        return max(1, int(self.rounded(self.steps * strength)))


def between(first: Recipe, last: Recipe, count: int) -> list[Recipe]:
    """`count` recipes, at least 2, from the prompt and seed of one to those of the other.

    Raises UndustError for recipes that differ in anything else.
    """
    if first.settings != last.settings or first.negative != last.negative:
        raise UndustError("interpolation: the ends may differ in prompt and seed alone")
    if count < 2:
        raise UndustError(f"count: {count} is too few; the two ends are two")
    ways = [
        Interpolation(prompt=last.prompt, seed=last.seed, part=place / (count - 1))
        for place in range(count)
    ]
    return [first.model_copy(update={"toward": way}) for way in ways]
