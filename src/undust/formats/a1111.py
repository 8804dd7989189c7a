"""The `parameters` text of AUTOMATIC1111's web UI, which picture sites and other programs read.

a smiling cat <lora:paper:0.8>
Negative prompt: blurry
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4, Seed: 1, Size: 64x64, …
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undust.diffusion.names import FROM_SAMPLERS, FROM_SCHEDULES, SAMPLERS, SCHEDULES
from undust.errors import UndustError, few, quoted

NEGATIVE = "Negative prompt:"
FEWEST = 3  # a last line with fewer settings than this is part of the prompt
# The key's length is bounded so that no line takes quadratic time.
SETTING = re.compile(r'(\w[\w \-/]{1,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
LORA = re.compile(r" ?<lora:([^:<>\n]+)(?::([-+.\de]{1,30}))?>")
FIELDS = {  # their name -> the recipe's, and its type
    "Steps": ("steps", int),
    "CFG scale": ("guidance", float),
    "Seed": ("seed", int),
    "Model hash": ("model_hash", str),
    "Model": ("model", str),
    "Denoising strength": ("strength", float),
}
# What has to stand beside a sampler's name: without it theirs draws noise, or is of third order.
BESIDE = {
    "dpm-adaptive": {"Eta": "0"},
    "dpm-fast": {"Eta": "0"},
    "unipc": {"UniPC variant": "bh2", "UniPC order": "2"},
}
RESIZED = {"Hires upscaler": "Lanczos"}  # how a picture is made larger for the second pass
TO_SIZE = ("Hires resize", "First pass size")  # a second pass that no recipe has a word for


def a1111_parameters(recipe: Mapping[str, Any], size: tuple[int, int]) -> str:
    """The text for a recipe's plain values, of those that have a place in it.

    size: width and height of the finished picture; the text tells those of the first pass.
    """
    recipe = {name: value for name, value in recipe.items() if value not in (None, "")}
    sampler, schedule = (str(recipe.get(name, "")) for name in ("sampler", "schedule"))
    strength, upscale, refiner = (recipe.get(name) for name in ("strength", "upscale", "refiner"))
    upscale, refiner = upscale or {}, refiner or {}
    width, height = (int(round(side / upscale.get("factor", 1), 6)) for side in size)
    # There, a picture is either begun from or made larger, and there is one strength.
    strengths = [each for each in (strength, upscale.get("strength")) if each is not None]
    loras = [(_name(lora["path"]), lora) for lora in recipe.get("loras", ())]
    hashes = [(name, lora.get("tensors_hash", "")) for name, lora in loras]
    settings = {
        "Steps": recipe.get("steps"),
        "Sampler": SAMPLERS.get(sampler, sampler),
        "Schedule type": SCHEDULES.get(schedule, schedule),
        "CFG scale": recipe.get("guidance"),
        "Seed": recipe.get("seed"),
        "Size": f"{width}x{height}",
        "Model hash": recipe.get("model_hash"),
        "Model": recipe.get("model"),
        "VAE": _name(recipe["vae"]["path"]) if "vae" in recipe else None,
        "Denoising strength": next(iter(strengths), None),
        "Clip skip": recipe["clip_skip"] + 1 if "clip_skip" in recipe else None,
        **BESIDE.get(sampler, {}),
        **{f"ControlNet {n}": _control(each) for n, each in enumerate(recipe.get("controls", ()))},
        "Hires upscale": upscale.get("factor"),
        **(RESIZED if upscale else {}),
        "Hires strength": strengths[1] if len(strengths) > 1 else None,  # as SD.Next has it
        "Lora hashes": ", ".join(f"{name}: {digits}" for name, digits in hashes if digits),
        "Refiner": f"{_name(refiner['model'])} [{refiner['model_hash']}]" if refiner else None,
        "Refiner switch at": refiner.get("after"),
    }
    tags = [f"<lora:{name}:{_plain(lora['weight'])}>" for name, lora in loras]
    lines = [" ".join(filter(None, [str(recipe.get("prompt", "")), *tags]))]
    if "negative" in recipe:
        lines.append(f"{NEGATIVE} {recipe['negative']}")
    told = {name: _plain(value) for name, value in settings.items() if value not in (None, "")}
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in told.items()))
    return "\n".join(lines)


def parse_a1111(text: str) -> dict[str, Any]:
    """The recipe's plain values that a `parameters` text tells of; files by their names alone.

    What has no place in a recipe stands under "other". Raises UndustError for a number that is none
    and for more settings than can be meant.
    """
    *lines, last = text.strip().split("\n")
    found = SETTING.findall(last)
    if len(found) < FEWEST:
        lines, found = [*lines, last], []
    few("parameters", found)
    settings = {name: _unquoted(given.strip()) for name, given in found}
    body, _, negative = ("\n" + "\n".join(lines)).partition("\n" + NEGATIVE)
    tags: list[tuple[str, str]] = LORA.findall(body)
    few("parameters: the prompt", tags)
    recipe: dict[str, Any] = {"prompt": LORA.sub("", body).strip(), "negative": negative.strip()}
    recipe |= _how(settings)
    taken = [name for name in FIELDS if name in settings]
    if settings.keys() & TO_SIZE and "Denoising strength" in taken:
        taken.remove("Denoising strength")  # it belongs to that pass
    for name in taken:
        field, kind = FIELDS[name]
        recipe[field] = _number(name, settings.pop(name), kind)
    if size := re.fullmatch(r"(\d{1,9})x(\d{1,9})", settings.get("Size", "")):
        recipe["width"], recipe["height"] = int(size[1]), int(size[2])
        del settings["Size"]
    if (skip := _number("Clip skip", settings.pop("Clip skip", 1), int)) > 1:
        recipe["clip_skip"] = skip - 1
    if "Hires upscale" in settings:
        recipe["upscale"] = _upscale(recipe, settings)
    if refiner := settings.pop("Refiner", ""):
        model, _, digits = refiner.removesuffix("]").rpartition(" [")
        recipe["refiner"] = {"model": model, "model_hash": digits} if model else {"model": digits}
        if after := settings.pop("Refiner switch at", ""):
            recipe["refiner"]["after"] = _number("Refiner switch at", after, float)
    if tags:
        recipe["loras"] = [
            {"path": name, "weight": _number(f"the weight of {name}", weight or 1, float)}
            for name, weight in tags
        ]
    if settings:
        recipe["other"] = settings
    return recipe


def _how(settings: dict[str, str]) -> dict[str, str]:
    """Sampler and schedule under our names, where they are ours; taken out of the settings."""
    sampler, schedule = settings.pop("Sampler", ""), settings.pop("Schedule type", "")
    name, _, tail = sampler.rpartition(" ")
    if name in FROM_SAMPLERS and tail in FROM_SCHEDULES:  # one name until the web UI's 1.9
        sampler, schedule = name, tail if schedule in ("", "Automatic") else schedule
    ours = FROM_SAMPLERS.get(sampler, sampler)
    beside = BESIDE.get(ours, {}) if ours != sampler else {}
    if all(settings.get(key, "").removesuffix(".0") == value for key, value in beside.items()):
        sampler = ours
        for key in beside:
            del settings[key]
    how = {"sampler": sampler, "schedule": FROM_SCHEDULES.get(schedule, schedule)}
    return {field: name for field, name in how.items() if name}


def _upscale(recipe: dict[str, Any], settings: dict[str, str]) -> dict[str, float]:
    """The second pass, taken out of the settings; the one strength there is belongs to it."""
    upscale = {"factor": _number("Hires upscale", settings.pop("Hires upscale"), float)}
    if strength := settings.pop("Hires strength", ""):
        upscale["strength"] = _number("Hires strength", strength, float)
    elif "strength" in recipe:
        upscale["strength"] = recipe.pop("strength")
    for name, _ in RESIZED.items() & settings.items():
        del settings[name]
    return upscale


def _number(name: str, given: object, kind: Any) -> Any:
    """What is given, as a finite number, or as text if the kind is that."""
    try:
        number = kind(given)
        if kind is str or math.isfinite(number):
            return number
    except (ValueError, OverflowError):
        pass
    raise UndustError(f"parameters: {name} has to be a number, not {quoted(given)}")


def _name(path: str) -> str:
    """A file as the web UI's users know it, without the marks that it uses itself."""
    return re.sub(r"[:,<>\n]", "", Path(path).name.removesuffix(".safetensors"))


def _control(control: Mapping[str, Any]) -> str:
    """A ControlNet as the web UI's extension for them tells it."""
    told = {
        "Module": "canny" if control["edges"] else "none",
        "Model": _name(control["path"]),
        "Weight": control["weight"],
        "Guidance Start": control["start"],
        "Guidance End": control["end"],
    }
    return ", ".join(f"{name}: {_plain(value)}" for name, value in told.items())


def _plain(value: object) -> str:
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _quoted(text: str) -> str:
    plain = text == text.strip() and not re.search(r'[,:\n"]', text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:
            pass  # a stray quotation mark, as people type them
    return text
