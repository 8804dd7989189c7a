"""What can be asked for beside words, as a recipe holds it and as people write it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, cast

from pydantic import Field, ValidationError

from undust.errors import UndustError, shown
from undust.generation.given import Frozen, GivenPicture, GivenWeights
from undust.generation.guides import reason

if TYPE_CHECKING:
    from undust.generation.loop import Model

Pixels = Annotated[int, Field(ge=0, le=2**14)]
Share = Annotated[float, Field(ge=0, le=1)]
NUMBER = r"-?\d+(?:\.\d*)?|-?\.\d+"
EDGES = "canny:"  # before a picture of which the edges are meant


class Asked(Frozen):
    """A wish that can be written as one text."""

    @classmethod
    def read(cls, given: object) -> Self:
        """From what a person wrote, plain values, or itself. Raises UndustError for others."""
        if isinstance(given, cls):
            return given
        fields = cls.parsed(given) if isinstance(given, str) else given
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise UndustError(f"{cls.__name__.lower()}: {reason(error)}") from None

    @classmethod
    def parsed(cls, text: str) -> dict[str, Any]:
        """The fields in a text. Raises UndustError for a text that is none."""
        raise NotImplementedError


class Toward(Frozen):
    """Another prompt and seed, and what part of the way to them a picture lies."""

    prompt: str = Field(max_length=10_000)
    seed: int = Field(ge=0, lt=2**63)
    part: Share


class Upscale(Asked):
    """A second pass: the picture made `factor` times as large, and painted over that strongly.

    Written FACTOR or FACTOR@STRENGTH.
    """

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
            raise UndustError(
                f"upscale: '{shown(text)}' is not FACTOR or FACTOR@STRENGTH, such as 2@0.3"
            )
        return _given(factor=found[1], strength=found[2])


class Refiner(Asked):
    """The model that takes over for the last time steps, after that share of them.

    Written PATH or PATH@SHARE.
    """

    model: str = Field(min_length=1, max_length=4096)
    model_hash: str = ""
    after: Share = 0.8

    @classmethod
    def parsed(cls, text: str) -> dict[str, Any]:
        """Of "refiner.safetensors@0.8"."""
        path, after = _tail(text, "@")
        return _given(model=path, after=after)

    def found(self, model: Model) -> Model:
        """The model that takes over. Raises UndustError if it is not what it was, or cannot."""
        other = model.another(self.model)
        if self.model_hash not in ("", other.hash):
            raise UndustError(
                f"refiner: {self.model} is another model ({other.hash}) than it was "
                f"({self.model_hash})"
            )
        if other.latents != model.latents:
            raise UndustError(
                f"refiner: {self.model} has other latents: channels, factor, scale and shift are "
                f"{other.latents}, not {model.latents}"
            )
        return other


class Framing(Asked):
    """What Stable Diffusion XL is told of where a picture comes from (Podell et al. 2023, 2.2).

    original: width and height of the picture that it was cut from; crop: how far from its left and
    from its top; target: width and height that it is to have. None is the size painted. Written
    as original=1024x1024,crop=0x0,target=1024x1024, or some of these.
    """

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
                raise UndustError(
                    f"framing: '{shown(part)}' is not original=WxH, crop=LEFTxTOP or target=WxH, "
                    "each of them once"
                )
            fields[found[1]] = (int(found[2]), int(found[3]))
        return fields


class LoRA(Asked, GivenWeights):
    """Low-rank changes of the weights, and how much of them. Written PATH or PATH:WEIGHT."""

    weight: float = Field(1.0, ge=-100, le=100)

    @classmethod
    def parsed(cls, text: str) -> dict[str, Any]:
        """Of "style.safetensors:0.8"."""
        path, weight = _tail(text, ":")
        return _given(path=path, weight=weight)


class Embedding(Asked, GivenWeights):
    """A word that was learnt, and what it is called in prompts. Written PATH or PATH=WORD.

    Without a word it is called as the file is.
    """

    word: str = Field(min_length=1, max_length=200)

    @classmethod
    def parsed(cls, text: str) -> dict[str, Any]:
        """Of "cat-toy.safetensors=<cat-toy>"."""
        path, _, word = text.partition("=")
        return {"path": path, "word": word or Path(path).stem}


class Control(Asked, GivenWeights):
    """A ControlNet, the map it is shown, how strongly, and for which share of the steps.

    Written PATH=PICTURE, then @WEIGHT and :START-END if need be. edges: the map is the edges of the
    picture that is given, written PATH=canny:PICTURE.
    """

    picture: GivenPicture
    edges: bool = False
    weight: float = Field(1.0, ge=-100, le=100)
    start: Share = 0.0
    end: Share = 1.0

    @classmethod
    def parsed(cls, text: str) -> dict[str, Any]:
        """Of "canny.safetensors=canny:house.png@0.8:0-0.5"."""
        path, equals, rest = text.partition("=")
        told = rest.removeprefix(EDGES)
        found = re.fullmatch(
            rf"(.+?)(?:@({NUMBER}))?(?::({NUMBER})-({NUMBER}))?", told, flags=re.DOTALL
        )
        if not equals or not path or not found:
            raise UndustError(
                f"control: '{shown(text)}' is not PATH=PICTURE, PATH=PICTURE@WEIGHT or "
                "PATH=PICTURE@WEIGHT:START-END"
            )
        return {
            "path": path,
            "picture": {"path": found[1]},
            "edges": told != rest,
            **_given(weight=found[2], start=found[3], end=found[4]),
        }

    def settle(self) -> Self:
        """With the hashes of both files."""
        own = super().settle()
        return own.model_copy(update={"picture": GivenPicture.of(self.picture)})


def read_extend(given: object) -> tuple[int, ...]:
    """Pixels to add at the left, top, right and bottom, of "64,0,64,0" or four numbers."""
    sides = given.split(",") if isinstance(given, str) else cast("Iterable[object]", given)
    try:
        pixels = tuple(int(str(side)) for side in sides)
    except (TypeError, ValueError):
        pixels = ()
    if len(pixels) != 4 or min(pixels) < 0 or not any(pixels):
        raise UndustError(
            f"extend: {shown(given)} is not LEFT,TOP,RIGHT,BOTTOM in pixels, such as 64,0,64,0"
        )
    return pixels


def _tail(text: str, mark: str) -> tuple[str, str | None]:
    """The text before the last mark and the number after it, if it is one: paths have marks too."""
    head, found, tail = text.rpartition(mark)
    return (head, tail) if found and re.fullmatch(NUMBER, tail) else (text, None)


def _given(**fields: object) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
