"""Programs that write one JSON object of names and values, or a PNG text for each of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from undust.formats.metadata.found import Found, as_list, as_object, base_name, texts_of

EASY = {
    "prompt": "prompt",
    "negative_prompt": "negative",
    "seed": "seed",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "sampler_name": "sampler",
    "use_stable_diffusion_model": "model",
    "width": "width",
    "height": "height",
    "Prompt": "prompt",
    "Negative Prompt": "negative",
    "Seed": "seed",
    "Steps": "steps",
    "Guidance Scale": "guidance",
    "Sampler": "sampler",
    "Stable Diffusion model": "model",
    "Width": "width",
    "Height": "height",
}
DRAW_THINGS = {
    "c": "prompt",
    "uc": "negative",
    "seed": "seed",
    "steps": "steps",
    "scale": "guidance",
    "sampler": "sampler",
    "model": "model",
}
SWARM = {
    "prompt": "prompt",
    "negativeprompt": "negative",
    "seed": "seed",
    "steps": "steps",
    "cfgscale": "guidance",
    "sampler": "sampler",
    "comfyuisampler": "sampler",
    "autowebuisampler": "sampler",
    "scheduler": "schedule",
    "comfyuischeduler": "schedule",
    "model": "model",
    "width": "width",
    "height": "height",
}
TENSOR = {
    "prompt": "prompt",
    "negativePrompt": "negative",
    "seed": "seed",
    "steps": "steps",
    "cfgScale": "guidance",
    "samplerName": "sampler",
    "clipSkip": "last_layer",
    "width": "width",
    "height": "height",
}
CIVITAI = {
    "prompt": "prompt",
    "negativePrompt": "negative",
    "steps": "steps",
    "cfgScale": "guidance",
    "sampler": "sampler",
    "seed": "seed",
    "clipSkip": "last_layer",
    "width": "width",
    "height": "height",
}
EASY_SIGNS = {"use_stable_diffusion_model", "Stable Diffusion model"}
EASY_STRENGTHS = ("prompt_strength", "Prompt Strength")  # only of a picture begun from
# Names that scripts and small programs use.
COMMON = {
    **EASY,
    "negativePrompt": "negative",
    "steps": "steps",
    "cfg_scale": "guidance",
    "cfg": "guidance",
    "sampler": "sampler",
    "scheduler": "schedule",
    "model": "model",
}


def easy_diffusion(told: Mapping[str, Any]) -> Found | None:
    """Easy Diffusion: JSON in EXIF, or PNG texts of the same names."""
    if not EASY_SIGNS & told.keys():
        return None
    found = Found("Easy Diffusion")
    told = dict(told)
    skip = told.pop("clip_skip", told.pop("Clip Skip", False))  # the last layer left out, or not
    if str(skip) == "True":
        found.recipe["clip_skip"] = 1
    names = texts_of(_several(told.pop("use_lora_model", told.pop("LoRA model", None))))
    alphas = _several(told.pop("lora_alpha", told.pop("LoRA Strength", None)))
    for place, name in enumerate(names[:64]):
        given = alphas[place] if place < len(alphas) else None
        found.add_lora(name, 1 if given is None else given)
    found.take(told, EASY | dict.fromkeys(EASY_STRENGTHS, "strength"))
    return found


def _several(value: object) -> list[Any]:
    """One or several values; as a PNG text several are Python's `['a', 'b']`."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        return [each.strip(" '\"") for each in value[1:-1].split(",")]
    return as_list(value) or [value]


def draw_things(told: Mapping[str, Any]) -> Found | None:
    """Draw Things: JSON in XMP's exif:UserComment."""
    if "c" not in told or not {"uc", "scale", "sampler"} & told.keys():
        return None
    found = Found("Draw Things")
    told = dict(told)
    size = re.fullmatch(r"(\d{1,9})x(\d{1,9})", str(told.get("size", "")))
    if size:
        del told["size"]
        found.recipe["width"], found.recipe["height"] = int(size[1]), int(size[2])
    strength = told.pop("strength", 1)
    if strength not in (1, 1.0):
        found.set("strength", strength)
    for each in map(as_object, as_list(told.pop("lora", None))[:64]):
        for name in texts_of([each.get("model"), each.get("file")])[:1]:
            found.add_lora(name, each.get("weight", 1))
    told.pop("v2", None)  # the same once more, and all that was not changed
    found.take(told, DRAW_THINGS)
    return found


def swarmui(told: Mapping[str, Any]) -> Found | None:
    """SwarmUI: JSON in `parameters`."""
    given = dict(as_object(told.get("sui_image_params")))
    if not given:
        return None
    found = Found("SwarmUI")
    loras = as_list(given.pop("loras", None))
    weights = as_list(given.pop("loraweights", None))
    for place, name in enumerate(texts_of(loras)[:64]):
        found.add_lora(name, weights[place] if place < len(weights) else 1)
    found.take(given, SWARM)
    return found


def civitai(told: Mapping[str, Any]) -> Found | None:
    """Civitai: its own names, in JSON or in the text `extraMetadata` of a graph."""
    if not isinstance(told.get("prompt"), str) or "cfgScale" not in told or "sampler" not in told:
        return None
    found = Found("Civitai")
    found.take(told, CIVITAI)
    return found


def unknown(told: Mapping[str, Any]) -> Found:
    """Unknown programs: values under the usual names, if there is a prompt."""
    found = Found("an unknown program", notes=["its names and values are of no known form"])
    is_prompt = isinstance(told.get("prompt", told.get("Prompt")), str)
    found.take(told, COMMON if is_prompt else {})
    return found


def tensor_art(told: Mapping[str, Any]) -> Found | None:
    """Tensor.Art: JSON in `generation_data`."""
    if "prompt" not in told or not {"samplerName", "cfgScale", "baseModel"} & told.keys():
        return None
    found = Found("Tensor.Art")
    told = dict(told)
    for name in texts_of([as_object(told.pop("baseModel", None)).get("modelFileName")]):
        found.recipe["model"] = base_name(name)
    for each in map(as_object, as_list(told.pop("models", None))[:64]):
        for name in texts_of([each.get("modelFileName")]):
            if each.get("type") == "LORA":
                found.add_lora(name, each.get("weight", 1))
    found.take(told, TENSOR)
    return found
