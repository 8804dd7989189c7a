"""The settings in a program's text, as fields of our recipes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from undust.diffusion.aliases import elsewhere, no_counterpart, schedule_elsewhere
from undust.errors import limit_entries, printable, quoted

FIELD_TYPES: dict[str, Any] = {
    **dict.fromkeys(("steps", "seed", "width", "height", "clip_skip", "last_layer"), int),
    **dict.fromkeys(("guidance", "strength"), float),
}
THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+")
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
SIZE = re.compile(r"(\d{1,9})\s*[xX×*]\s*(\d{1,9})")
MODEL_FILE = re.compile(r"\.(?:safetensors|ckpt|pt|pth|bin|sft)$", re.IGNORECASE)


@dataclass
class Found:
    """The settings that a program wrote into a picture.

    recipe: plain values of a recipe, files by their names alone; other: what has no place in one;
    notes: one line for each value that could not be read or is meant otherwise.
    """

    program: str
    recipe: dict[str, Any] = field(default_factory=dict[str, Any])
    other: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: list[str] = field(default_factory=list[str])

    def take(self, given: Mapping[str, Any], fields: Mapping[str, str]) -> None:
        """Takes over values; fields: the program's name → the recipe's.

        The rest goes to `other`. Raises UndustError for more values than can be meant.
        """
        limit_entries(self.program, given)
        for name, value in given.items():
            if value is None or value == "" or value == [] or value == {}:
                continue
            ours = fields.get(name)
            if ours is None:
                self.other[name] = as_scalar(value)
            else:
                self.set(ours, value, name)

    def set(self, field: str, value: object, name: str = "") -> None:
        """Sets a field of the recipe, or notes that it is invalid; name: the program's for it."""
        name = name or field
        if field in FIELD_TYPES:
            number = as_number(value, FIELD_TYPES[field])
            if number is None:
                self.notes.append(f"{name} has to be a number, not {quoted(value)}")
            elif field != "last_layer":
                self.recipe[field] = number
            elif abs(number) > 1:  # a web UI's clip skip, 1 for the last; ComfyUI's is below zero
                self.recipe["clip_skip"] = abs(number) - 1
        elif not isinstance(value, str):
            self.notes.append(f"{name} has to be a text, not {quoted(value)}")
        elif field == "sampler":
            self.set_sampler(value, name)
        elif field == "schedule":
            self.set_schedule(value, name)
        elif field in ("model", "vae"):
            self.recipe[field] = base_name(value)
        else:
            self.recipe[field] = value

    def set_sampler(self, value: str, name: str = "sampler") -> None:
        """Sets the sampler, and the schedule if its name includes one, under our names."""
        sampler, schedule = elsewhere(value)
        if sampler:
            self.recipe["sampler"] = sampler
        else:
            self.no_counterpart("sampler", value, name)
        if schedule:
            self.recipe.setdefault("schedule", schedule)

    def set_schedule(self, value: str, name: str = "schedule") -> None:
        """Sets the schedule under our name."""
        schedule = schedule_elsewhere(value)
        if schedule:
            self.recipe["schedule"] = schedule
        else:
            self.no_counterpart("schedule", value, name)

    def no_counterpart(self, field: str, value: str, name: str) -> None:
        """Adds a note on an unknown sampler or schedule."""
        self.other[name] = value
        self.notes.append(no_counterpart(field, printable(value), self.program))

    def add_lora(self, name: str, unet: object, text: object = None) -> None:
        """Adds a LoRA and its weight; text: another weight for the text encoder."""
        weight = as_number(unet, float)
        if weight is None:
            self.notes.append(f"the weight of {printable(name)} is not a number; 1 is used")
            weight = 1.0
        other = weight if text is None else as_number(text, float)
        if other != weight:
            self.notes.append(different_weights(name, other, weight))
        self.recipe.setdefault("loras", []).append({"path": base_name(name), "weight": weight})


def different_weights(name: str, text: object, unet: object) -> str:
    """The note on a LoRA with two weights, of which a recipe has one."""
    return (
        f"LoRA {printable(name)}: {quoted(text)} for the text encoder and {quoted(unet)} for the "
        f"U-Net; there is one weight here, {quoted(unet)}"
    )


def as_number(value: object, kind: Any) -> Any:
    """The value as a finite number of that type, or None; 20.0 and "20" count as integers.

    In a text "1,234" is 1234 where an integer is meant, and 1.234 where any number is.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and kind is int and THOUSANDS.fullmatch(value.strip()):
        value = value.replace(",", "")
    elif isinstance(value, str) and DECIMAL_COMMA.fullmatch(value.strip()):
        value = value.replace(",", ".")
    try:
        number = kind(value)
        if kind is int and isinstance(value, float) and number != value:
            return None
    except (ValueError, OverflowError):
        if kind is not int or not isinstance(value, str):
            return None
        whole = as_number(value, float)
        return int(whole) if whole is not None and whole == int(whole) else None
    return number if isinstance(number, int) or math.isfinite(number) else None


def as_scalar(value: object) -> str | int | float:
    """A value, or its JSON text if it is a list or an object."""
    if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return quoted(value)


def base_name(path: str) -> str:
    """A model's name without folders and without the ending for safetensors."""
    return re.split(r"[/\\]", path)[-1].removesuffix(".safetensors")


def as_json(text: str) -> Any:
    """The value of a JSON text, or None for other texts; NULs around it do not count."""
    try:
        return json.loads(text.strip("\0\ufeff \t\r\n"))
    except (ValueError, RecursionError):
        return None


def as_object(value: object) -> dict[str, Any]:
    """A JSON object, also one written as JSON in a JSON text; an empty one for anything else."""
    for _ in range(2):
        if isinstance(value, str):
            value = as_json(value)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """A JSON array, or an empty one for anything else."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def texts_of(values: Iterable[object]) -> list[str]:
    """The values that are non-empty texts."""
    return [value for value in values if isinstance(value, str) and value.strip()]
