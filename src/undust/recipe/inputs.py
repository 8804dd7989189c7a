"""What can be asked for beside words, as a recipe holds it and as people write it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, cast

from pydantic import Field, ValidationError, field_validator

from undust.errors import UndustError, printable, quoted
from undust.recipe.files import DIGITS, ImageRef, PathText, WeightsRef, is_there
from undust.recipe.plain import Frozen, reason

Pixels = Annotated[int, Field(ge=0, le=2**14)]
Share = Annotated[float, Field(ge=0, le=1)]
NUMBER = r"-?\d+(?:\.\d*)?|-?\.\d+"
EDGES = "canny:"  # before a picture of which the edges are meant
DURING = rf":(?P<start>{NUMBER})-(?P<end>{NUMBER})"
TAILS = ("", DURING, rf"(?:@(?P<weight>{NUMBER}))?(?:{DURING})?")  # after the picture of a control


class TextInput(Frozen):
    """An input that can be written as one text."""

    written: ClassVar[str]  # the form of the text

    @classmethod
    def read(cls, given: object) -> Self:
        """From a text, plain values, or itself. Raises UndustError for others."""
        if isinstance(given, cls):
            return given
        kind = cls.kind or cls.__name__.lower()
        if isinstance(given, str | os.PathLike):
            fields = cls.parsed(os.fsdecode(cast("str | os.PathLike[str]", given)))
        elif isinstance(given, Mapping):
            fields = dict(cast("Mapping[str, Any]", given))
        else:
            raise UndustError(f"{kind}: {quoted(given)} is not valid; expected {cls.written}")
        for name in fields:
            if name not in cls.model_fields:
                raise UndustError(
                    f"{kind}: {quoted(name)} is none of {', '.join(cls.model_fields)}; expected "
                    f"as text: {cls.written}"
                )
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise UndustError(f"{kind}: {reason(error)}") from None

    @classmethod
    def parsed(cls, text: str) -> dict[str, Any]:
        """The fields in a text. Raises UndustError for other texts."""
        raise NotImplementedError


class Interpolation(Frozen):
    """Another prompt and seed, and the interpolation weight of a picture, 0 to 1."""

    prompt: str = Field(max_length=10_000)
    seed: int = Field(ge=0, lt=2**63)
    part: Share


class Upscale(TextInput):
    """A second pass at `factor` times the size, with the strength of image to image."""

    written = "FACTOR or FACTOR@STRENGTH, such as 2@0.3"
    factor: float = Field(gt=1, le=8)
    strength: float = Field(0.3, gt=0, le=1)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Of a picture made larger, each side rounded up."""
        # To six digits first, for 200 × 1.1 is a little more than 220.
        large, high = (math.ceil(round(side * self.factor, 6)) for side in (width, height))
        return large, high

    @classmethod
    def parsed(cls, text: str) -> dict[str, Any]:
        """Of "2" or "2@0.3"."""
        found = re.fullmatch(rf"({NUMBER})(?:@({NUMBER}))?", text.strip())
        if not found:
            raise UndustError(f"upscale: '{printable(text)}' is not {cls.written}")
        return _given(factor=found[1], strength=found[2])


class Refiner(TextInput):
    """The model that takes over for the last time steps, after that share of them."""

    written = "PATH or PATH@SHARE"
    model: PathText = Field(min_length=1, max_length=4096)
    model_hash: str = ""
    after: Share = 0.8

    @classmethod
    def parsed(cls, text: str) -> dict[str, Any]:
        """Of "refiner.safetensors@0.8"."""
        path, after = _tail(text, "@")
        return _given(model=path, after=after)


class SizeConditioning(TextInput):
    """The size conditioning of Stable Diffusion XL (Podell et al. 2023, section 2.2).

    original: width and height before the crop; crop: pixels from the left and the top; target:
    width and height after it. None is the size of the picture that is generated.
    """

    kind = "framing"
    written = "original=WxH, crop=LEFTxTOP or target=WxH, each of them once"
    original: tuple[Pixels, Pixels] | None = None
    crop: tuple[Pixels, Pixels] = (0, 0)
    target: tuple[Pixels, Pixels] | None = None

    @classmethod
    def parsed(cls, text: str) -> dict[str, Any]:
        """Of "original=512x512,crop=0x64"."""
        fields: dict[str, Any] = {}
        for part in text.split(","):
            found = re.fullmatch(
                r"\s*(original|crop|target)\s*=\s*(\d{1,6})[xX×](\d{1,6})\s*", part
            )
            if not found or found[1] in fields:
                raise UndustError(f"framing: '{printable(part)}' is not {cls.written}")
            fields[found[1]] = (int(found[2]), int(found[3]))
        return fields


class LoRA(TextInput, WeightsRef):
    """Low-rank changes of the weights, and their weight."""

    written = "PATH or PATH:WEIGHT, such as style.safetensors:0.8"
    weight: float = Field(1.0, ge=-100, le=100)
    tensors_hash: str = Field("", max_length=DIGITS, exclude_if=lambda digits: not digits)

    @classmethod
    def parsed(cls, text: str) -> dict[str, Any]:
        """Of "style.safetensors:0.8"."""
        path, weight = _tail(text, ":")
        return _given(path=path, weight=weight)


class Embedding(TextInput, WeightsRef):
    """A textual inversion embedding, and its word in prompts, by default the name of the file."""

    written = "PATH or PATH=WORD"
    word: str = Field(min_length=1, max_length=200)

    @classmethod
    def parsed(cls, text: str) -> dict[str, Any]:
        """Of "cat-toy.safetensors=<cat-toy>"."""
        path, word = (text, "") if is_there(text) else _sides(text)
        return {"path": path, "word": word or Path(path).stem}


class Control(TextInput, WeightsRef):
    """A ControlNet, its input picture, its weight, and the share of the steps in which it acts.

    edges: whether its input is the edges of the picture, in a text PATH=canny:PICTURE.
    """

    written = "PATH=PICTURE, PATH=PICTURE@WEIGHT or PATH=PICTURE@WEIGHT:START-END"
    picture: ImageRef
    edges: bool = False
    weight: float = Field(1.0, ge=-100, le=100)
    start: Share = 0.0
    end: Share = 1.0

    @classmethod
    def parsed(cls, text: str) -> dict[str, Any]:
        """Of "canny.safetensors=canny:house.png@0.8:0-0.5"."""
        path, rest = _sides(text)
        shown = rest.removeprefix(EDGES)
        if not path or not shown:
            raise UndustError(f"control: '{printable(text)}' is not {cls.written}")
        forms = (re.fullmatch(rf"(?P<picture>.+?){tail}", shown, re.DOTALL) for tail in TAILS)
        read = [form.groupdict() for form in forms if form]
        fields = next((each for each in read if is_there(each["picture"])), read[-1])
        picture = {"path": fields.pop("picture")}
        return {"path": path, "picture": picture, "edges": shown != rest, **_given(**fields)}

    @field_validator("picture", mode="before")
    @classmethod
    def _any_picture(cls, given: object) -> object:
        return given if isinstance(given, Mapping | ImageRef) else ImageRef.of(given)


def read_extend(given: object) -> tuple[int, ...]:
    """Pixels to add at the left, top, right and bottom, of "64,0,64,0" or four numbers."""
    sides = given.split(",") if isinstance(given, str) else cast("Iterable[object]", given)
    try:
        pixels = tuple(int(str(side)) for side in sides)
    except (TypeError, ValueError):
        pixels = ()
    if len(pixels) != 4 or min(pixels) < 0 or not any(pixels):
        raise UndustError(
            f"extend: {printable(given)} is not LEFT,TOP,RIGHT,BOTTOM in pixels, such as 64,0,64,0"
        )
    return pixels


def _tail(text: str, mark: str) -> tuple[str, str | None]:
    """The text before the last mark and the number after it, if it is one; paths have marks too."""
    head, found, tail = text.rpartition(mark)
    apart = found and re.fullmatch(NUMBER, tail) and not is_there(text)
    return (head, tail) if apart else (text, None)


def _sides(text: str) -> tuple[str, str]:
    """What is before and after a "=": the last that ends a path which is there, or the first.

    Without any, all is before it.
    """
    places = [place for place, letter in enumerate(text) if letter == "="] or [len(text)]
    there = (place for place in reversed(places) if is_there(text[:place]))
    place = next(there, places[0])
    return text[:place], text[place + 1 :]


def _given(**fields: object) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
