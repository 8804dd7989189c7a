"""NovelAI: the PNG texts Software, Source, Description and Comment, of which the last is JSON.

The copy of them in the lowest bits of the alpha channel is not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from undust.errors import printable
from undust.formats.metadata.found import Found, as_list, as_object, texts_of

PROGRAM = "NovelAI"
FIELDS = {
    "prompt": "prompt",
    "uc": "negative",
    "seed": "seed",
    "steps": "steps",
    "scale": "guidance",
    "sampler": "sampler",
    "noise_schedule": "schedule",
    "width": "width",
    "height": "height",
    "strength": "strength",
}
EMPHASIS = re.compile(r"[{}\[\]]|\d::")


def read(texts: Mapping[str, str]) -> Found | None:
    """The settings in the texts, or None if they are not NovelAI's."""
    if texts.get("Software") != PROGRAM:
        return None
    found = Found(PROGRAM)
    told = dict(as_object(texts.get("Comment", "")))
    if not told:
        found.notes.append("its Comment, which holds the settings, cannot be read")
    # Every picture has a strength; it only counts with an initial image.
    if "Img2Img" not in str(told.get("request_type", "")) and "image" not in told:
        for name in ("strength", "noise"):
            told.pop(name, None)
    for name, ours in (("v4_prompt", "prompt"), ("v4_negative_prompt", "uc")):
        _caption(told, name, ours)
    found.take(told, FIELDS)
    if not found.recipe.get("prompt"):
        found.recipe["prompt"] = texts.get("Description", "")
    if source := texts.get("Source"):
        found.other["Source"] = source
        found.notes.append(
            f"its model, {printable(source)}, is NovelAI's alone; set another one with --model"
        )
    if any(EMPHASIS.search(str(found.recipe.get(name, ""))) for name in ("prompt", "negative")):
        found.notes.append(
            "its emphasis differs: {x} counts 1.05 times, [x] 1/1.05 and 1.3::x:: 1.3 times there; "
            "here [x] counts 1/1.1, (x:1.05) 1.05 times"
        )
    return found


def _caption(told: dict[str, Any], name: str, ours: str) -> None:
    """The prompts of version 4, one for the picture and one for each character, as one text."""
    caption = as_object(as_object(told.pop(name, None)).get("caption"))
    characters = as_list(caption.get("char_captions"))
    spoken = [as_object(each).get("char_caption") for each in characters]
    if parts := texts_of([caption.get("base_caption"), *spoken]):
        told[ours] = ", ".join(parts)
