"""The `parameters` text of AUTOMATIC1111's web UI, read by picture sites and other programs.

a smiling cat <lora:paper:0.8>
Negative prompt: blurry
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4, Seed: 1, Size: 64x64, …
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from undust.diffusion.aliases import (
    FROM_SAMPLERS,
    FROM_SCHEDULES,
    NEAREST_SAMPLERS,
    SAMPLERS,
    SCHEDULES,
    elsewhere,
    schedule_elsewhere,
)
from undust.errors import limit_entries, printable, quoted
from undust.formats.a1111_lines import (
    NEGATIVE,
    NEGATIVES,
    named_after,
    parted,
    settings_in,
)
from undust.formats.metadata.found import (
    SIZE,
    as_json,
    as_list,
    as_number,
    as_object,
    different_weights,
    texts_of,
)

NETWORK = re.compile(r" ?<(lora|lyco|hypernet):([^:<>\n]+)((?::[^:<>\n]{0,200}){0,20})>")
RESOURCES = "Civitai resources"
MAX_NOTES = 20  # notes on them
FIELDS = {  # their name -> the recipe's, and its type
    "Steps": ("steps", int),
    "CFG scale": ("guidance", float),
    "Seed": ("seed", int),
    "Model hash": ("model_hash", str),
    "Model": ("model", str),
    "Denoising strength": ("strength", float),
}
# Further settings that belong to a sampler: without them the web UI's is of third order.
BESIDE = {"unipc": {"UniPC variant": "bh2", "UniPC order": "2"}}
RESIZED = {"Hires upscaler": "Lanczos"}  # how a picture is made larger for the second pass
TO_SIZE = ("Hires resize", "First pass size")  # a second pass that no recipe has a word for


def a1111_parameters(recipe: Mapping[str, Any], size: tuple[int, int]) -> str:
    """The text for the fields of a recipe that the format has.

    size: width and height of the finished picture; the text tells those of the first pass.
    """
    recipe = {name: value for name, value in recipe.items() if value not in (None, "")}
    sampler, schedule = (str(recipe.get(name, "")) for name in ("sampler", "schedule"))
    strength, upscale, refiner = (recipe.get(name) for name in ("strength", "upscale", "refiner"))
    upscale, refiner = upscale or {}, refiner or {}
    width, height = (int(round(side / upscale.get("factor", 1), 6)) for side in size)
    # The web UI has either an initial image or upscaling, with one strength for both.
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
    """The recipe's fields in a `parameters` text; files by their names alone.

    Values without a place in a recipe stand under "other"; "notes" has a line for each value that
    cannot be read or is meant otherwise here. Raises UndustError for more settings and LoRAs than
    can be meant.
    """
    lines, line, after = parted(text)
    settings = dict(settings_in(line))
    notes: list[str] = []
    body, *negatives = NEGATIVES.split("\n".join(lines))
    negative = "\n".join(each.strip() for each in negatives)
    tags: list[tuple[str, str, str]] = NETWORK.findall(body)
    limit_entries("parameters: the prompt", tags)
    recipe: dict[str, Any] = {"prompt": NETWORK.sub("", body).strip(), "negative": negative.strip()}
    recipe |= _how(settings, notes)
    taken = [name for name in FIELDS if name in settings]
    if settings.keys() & TO_SIZE and "Denoising strength" in taken:
        taken.remove("Denoising strength")  # it belongs to that pass
    for name in taken:
        field, kind = FIELDS[name]
        number = settings[name] if kind is str else _number(name, settings, kind, notes)
        if number is not None:
            recipe[field] = number
            del settings[name]
    if size := SIZE.fullmatch(settings.get("Size", "")):
        recipe["width"], recipe["height"] = int(size[1]), int(size[2])
        del settings["Size"]
    elif "Size" in settings:
        notes.append(f"Size has to be WIDTHxHEIGHT, not {quoted(settings['Size'])}")
    if skip := _number("Clip skip", settings, int, notes):
        del settings["Clip skip"]
        if abs(skip) > 1:  # ComfyUI counts it from the end, below zero
            recipe["clip_skip"] = abs(skip) - 1
    if factor := _number("Hires upscale", settings, float, notes):
        recipe["upscale"] = _upscale(factor, recipe, settings, notes)
    if refiner := settings.pop("Refiner", ""):
        model, _, digits = refiner.removesuffix("]").rpartition(" [")
        recipe["refiner"] = {"model": model, "model_hash": digits} if model else {"model": digits}
        if (share := _number("Refiner switch at", settings, float, notes)) is not None:
            recipe["refiner"]["after"] = share
            del settings["Refiner switch at"]
    if loras := list(_networks(tags, notes)) or list(_weights(settings)):
        recipe["loras"] = loras
    beyond = named_after(after, notes)
    if late := next((name for name in beyond if NEGATIVES.match(f"{name}:")), ""):
        recipe["negative"] = recipe["negative"] or beyond.pop(late)
    if other := settings | beyond:
        recipe["other"] = other
    if notes := [*notes, *_resources(settings, "model" in recipe)]:
        recipe["notes"] = [f"parameters: {note}" for note in notes]
    return recipe


def _how(settings: dict[str, str], notes: list[str]) -> dict[str, str]:
    """Sampler and schedule under our names if known; removed from the settings."""
    sampler, schedule = settings.pop("Sampler", ""), settings.pop("Schedule type", "")
    if not schedule and "Scheduler" in settings:  # of Fooocus and ComfyUI's savers
        if schedule := schedule_elsewhere(settings["Scheduler"]):
            del settings["Scheduler"]
        else:  # its beta is not ours
            theirs = printable(settings["Scheduler"])
            notes.append(f"Scheduler: '{theirs}' has no known counterpart here; left out")
    known = FROM_SAMPLERS | NEAREST_SAMPLERS
    tails = (each for each in FROM_SCHEDULES if sampler.endswith(f" {each}"))
    if tail := next((each for each in tails if sampler[: -len(each) - 1] in known), ""):
        sampler = sampler[: -len(tail) - 1]  # one name until the web UI's 1.9
        schedule = tail if schedule in ("", "Automatic") else schedule
    elif sampler not in known and (found := elsewhere(sampler))[0]:
        sampler, schedule = found[0], schedule or found[1]
    ours = FROM_SAMPLERS.get(sampler, sampler)
    beside = BESIDE.get(ours, {}) if ours != sampler else {}
    if all(settings.get(key, "").removesuffix(".0") == value for key, value in beside.items()):
        sampler = ours
        for key in beside:
            del settings[key]
    how = {"sampler": sampler, "schedule": schedule_elsewhere(schedule) or schedule}
    return {field: name for field, name in how.items() if name}


def _upscale(
    factor: float, recipe: dict[str, Any], settings: dict[str, str], notes: list[str]
) -> dict[str, float]:
    """The second pass with the strength; removed from the settings."""
    upscale = {"factor": factor}
    del settings["Hires upscale"]
    if strength := _number("Hires strength", settings, float, notes):
        upscale["strength"] = strength
        del settings["Hires strength"]
    elif "strength" in recipe:
        upscale["strength"] = recipe.pop("strength")
    for name, _ in RESIZED.items() & settings.items():
        del settings[name]
    return upscale


def _networks(tags: list[tuple[str, str, str]], notes: list[str]) -> Iterator[dict[str, Any]]:
    """The LoRAs among the tags `<lora:NAME:TEXT ENCODER:U-NET:key=value>`; notes on the rest."""
    for kind, name, tail in tags:
        if kind == "hypernet":
            notes.append(f"hypernetwork {printable(name)}: not supported; left out")
            continue
        values = [each.strip() for each in tail.split(":")[1:]]
        named = dict(each.split("=", 1) for each in values if "=" in each)
        placed = [each for each in values if each and "=" not in each]
        text = named.pop("te", placed[0] if placed else "1")
        unet = named.pop("unet", placed[1] if len(placed) > 1 else text)
        weight, other = as_number(unet, float), as_number(text, float)
        if weight is None or other is None:
            notes.append(
                f"the weight of {printable(name)} has to be a number, not {quoted(tail[1:])}; "
                "1 is used"
            )
            weight = 1.0
        elif weight != other:
            notes.append(different_weights(name, other, weight))
        if named or len(placed) > 2:
            rest = ":".join([*placed[2:], *(f"{key}={value}" for key, value in named.items())])
            notes.append(f"LoRA {printable(name)}: {printable(rest)} not supported; left out")
        yield {"path": name, "weight": weight}


def _weights(settings: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The LoRAs in Fooocus' `Lora weights: "NAME: WEIGHT, …"`."""
    parts = settings.get("Lora weights", "").split(", ")
    limit_entries("parameters: Lora weights", parts)
    for part in parts:
        name, _, weight = part.rpartition(": ")
        if name and (number := as_number(weight, float)) is not None:
            yield {"path": name, "weight": number}


def _resources(settings: Mapping[str, str], known: bool) -> Iterator[str]:
    """Notes on Civitai's list of models: it has their titles, not their files' names.

    known: the checkpoint's file is told elsewhere.
    """
    for each in as_list(as_json(settings.get(RESOURCES, "")))[:MAX_NOTES]:
        told = as_object(each)
        title = " ".join(texts_of([told.get("modelName"), told.get("modelVersionName")]))
        kind, weight = told.get("type"), told.get("weight")
        if not isinstance(kind, str) or not (title or "modelVersionId" in told):
            continue
        if known and kind == "checkpoint":
            continue
        title = title or f"of version {quoted(told['modelVersionId'])}"
        how = "" if weight is None else f", weight {quoted(weight)}"
        yield f"{printable(kind)} {printable(title)}{how}: Civitai does not store its file name"


def _number(name: str, settings: Mapping[str, str], kind: Any, notes: list[str]) -> Any:
    """A setting as a finite number; None if absent, and for other values with a note."""
    if name not in settings:
        return None
    number = as_number(settings[name], kind)
    if number is None:
        notes.append(f"{name} has to be a number, not {quoted(settings[name])}")
    return number


def _name(path: str) -> str:
    """A file name as in the web UI, without characters of its syntax."""
    return re.sub(r"[:,<>\n]", "", Path(path).name.removesuffix(".safetensors"))


def _control(control: Mapping[str, Any]) -> str:
    """A ControlNet in the format of the web UI's extension for them."""
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
