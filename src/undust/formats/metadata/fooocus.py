"""Fooocus: JSON in `parameters`; its other scheme is the web UI's text."""

from __future__ import annotations

import re
from typing import Any

from undust.errors import printable
from undust.formats.metadata.found import Found, as_list

PROGRAM = "Fooocus"
FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative",
    "steps": "steps",
    "seed": "seed",
    "guidance_scale": "guidance",
    "sampler": "sampler",
    "scheduler": "schedule",
    "base_model": "model",
    "base_model_hash": "model_hash",
    "clip_skip": "last_layer",
    # Fooocus' log and its early versions; RuinedFooocus.
    "Prompt": "prompt",
    "Negative": "negative",
    "Negative Prompt": "negative",
    "Steps": "steps",
    "Seed": "seed",
    "Guidance Scale": "guidance",
    "cfg": "guidance",
    "Sampler": "sampler",
    "sampler_name": "sampler",
    "Scheduler": "schedule",
    "Base Model": "model",
    "base_model_name": "model",
    "width": "width",
    "height": "height",
}
SIGNS = {"base_model", "base_model_name", "Base Model", "sharpness", "performance", "Performance"}
SIZE = re.compile(r"\D{0,3}(\d{1,9})\D{1,6}(\d{1,9})\D{0,3}")  # "(896, 1152)"
LORA = re.compile(r"(?:(?:True|False) : )?(.+) : ([-+.\de]{1,30})")


def read(told: dict[str, Any], scheme: str) -> Found | None:
    """The settings in the JSON object of `parameters`, or None if it is not Fooocus'."""
    if scheme != "fooocus" and not SIGNS & told.keys():
        return None
    told = dict(told)
    found = Found(PROGRAM)
    resolution = told.pop("resolution", None) or told.pop("Resolution", None)
    if isinstance(resolution, str) and (size := SIZE.fullmatch(resolution)):
        found.recipe["width"], found.recipe["height"] = int(size[1]), int(size[2])
    loras = as_list(told.pop("loras", None))
    combined = [name for name in told if re.fullmatch(r"lora_combined_\d+|LoRA \d+", name)]
    for name in combined:
        each = told.pop(name)
        parts = LORA.fullmatch(each) if isinstance(each, str) else None
        if parts and not parts[0].startswith("False") and parts[1] != "None":
            found.add_lora(parts[1], parts[2])
    if not combined:
        for each in map(as_list, loras):
            if len(each) > 1 and isinstance(each[0], str) and each[0] != "None":
                found.add_lora(each[0], each[1])
    refiner = told.pop("refiner_model", None) or told.pop("Refiner Model", None)
    if isinstance(refiner, str) and refiner not in ("", "None"):
        found.notes.append(
            f"its refiner, {printable(refiner)}, is left out; set one with --refiner"
        )
    if "full_prompt" in told or "styles" in told:
        found.notes.append("its styles add text to the prompt (see full_prompt); it is left out")
    if told.keys() & {"sharpness", "adm_guidance"}:
        found.notes.append("its sharpness and ADM guidance have no counterpart here")
    found.take(told, FIELDS)
    return found
