"""The `parameters` text of AUTOMATIC1111's web UI, which picture sites and other programs read.

a smiling cat
Negative prompt: blurry
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4, Seed: 1, Size: 64x64, …
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from undust.errors import UndustError, quoted

NEGATIVE = "Negative prompt:"
FEWEST = 3  # a last line with fewer settings than this is part of the prompt
# The key's length is bounded so that no line takes quadratic time.
SETTING = re.compile(r'(\w[\w \-/]{1,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
FIELDS = {  # their name -> the recipe's, and its type
    "Steps": ("steps", int),
    "Sampler": ("sampler", str),
    "Schedule type": ("schedule", str),
    "CFG scale": ("guidance", float),
    "Seed": ("seed", int),
    "Model hash": ("model_hash", str),
    "Model": ("model", str),
}
WORDS = {  # ours -> theirs; other samplers and schedules keep their names
    "sampler": {
        "ddim": "DDIM",
        "ddpm": "DDPM",
        "dpmpp-2m": "DPM++ 2M",
        "euler": "Euler",
        "euler-ancestral": "Euler a",
        "heun": "Heun",
    },
    "schedule": {"karras": "Karras", "exponential": "Exponential"},
}


def a1111_parameters(recipe: Mapping[str, Any]) -> str:
    """The text for a recipe; of its fields those that have a place in it."""
    settings = {
        theirs: WORDS.get(ours, {}).get(str(recipe[ours]), recipe[ours])
        for theirs, (ours, _) in FIELDS.items()
        if recipe.get(ours) not in (None, "")
    }
    if "width" in recipe and "height" in recipe:
        settings["Size"] = f"{recipe['width']}x{recipe['height']}"
    lines = [str(recipe.get("prompt", ""))]
    if recipe.get("negative"):
        lines.append(f"{NEGATIVE} {recipe['negative']}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def parse_a1111(text: str) -> dict[str, Any]:
    """The recipe that a `parameters` text tells of; what is unknown here stands under "other".

    Raises UndustError for a number that is none.
    """
    *lines, last = text.strip().split("\n")
    found = SETTING.findall(last)
    if len(found) < FEWEST:
        lines, found = [*lines, last], []
    body, _, negative = ("\n" + "\n".join(lines)).partition("\n" + NEGATIVE)
    recipe: dict[str, Any] = {"prompt": body.strip(), "negative": negative.strip()}
    for name, given in found:
        value = _unquoted(given.strip())
        if name == "Size" and (size := re.fullmatch(r"(\d{1,9})x(\d{1,9})", value)):
            recipe["width"], recipe["height"] = int(size[1]), int(size[2])
            continue
        if name not in FIELDS:
            recipe.setdefault("other", {})[name] = value
            continue
        field, kind = FIELDS[name]
        ours = {theirs: word for word, theirs in WORDS.get(field, {}).items()}
        try:
            recipe[field] = kind(ours.get(value, value))
        except ValueError as error:
            raise UndustError(
                f"parameters: {name} has to be a number, not {quoted(value)}"
            ) from error
    return recipe


def _quoted(value: object) -> str:
    text = str(value).removesuffix(".0") if isinstance(value, float) else str(value)
    plain = text == text.strip() and not re.search(r'[,:\n"]', text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:
            pass  # a stray quotation mark, as people type them
    return text
