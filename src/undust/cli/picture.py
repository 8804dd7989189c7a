"""What `undust inspect` says of pictures."""

from __future__ import annotations

import shlex
import warnings
from pathlib import Path
from typing import Any

from undust.errors import UndustError

SUFFIX = ".safetensors"
FIRST = ("prompt", "negative", "steps", "sampler", "schedule", "guidance", "seed")  # of a recipe
Facts = dict[str, Any]


def format_of(path: Path) -> str | None:
    """What kind of picture a file is, as Pillow calls it; None if it is none."""
    from undust.regular import open_regular

    with open_regular(path) as file:
        if file.read(4) == b"\x89PNG":
            return "PNG"
    from PIL import Image, UnidentifiedImageError

    from undust.pictures import read_image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # reading it tells what matters of them
            with open_regular(path) as file, Image.open(file) as image:
                return image.format
    except UnidentifiedImageError:
        return None
    except Exception:
        read_image(path)  # which says what is wrong
        raise


def describe(path: Path, kind: str) -> Facts:
    """How large a picture is, and what it says of how it was made.

    Raises UndustError for what is damaged.
    """
    from undust.formats.a1111 import parse_a1111
    from undust.formats.recipe_png import A1111_KEY, KEY, read_recipe, read_texts
    from undust.pictures import read_image

    texts = read_texts(path) if kind == "PNG" else {}
    recipe: Facts = {}
    told: Facts = {}
    if KEY in texts:
        recipe = read_recipe(path)
    elif A1111_KEY in texts:
        try:
            told = parse_a1111(texts[A1111_KEY])
        except UndustError as error:
            raise UndustError(f"{path}: {error}") from error
    image = read_image(path)
    other = told.pop("other", {})
    found = {
        "recipe": {name: recipe[name] for name in FIRST if name in recipe} | recipe,
        "A1111": {name: value for name, value in told.items() if value != ""},
        "other settings": other,
    }
    return {
        "path": str(path),
        "kind": "picture",
        "format": kind,
        "pixels": f"{image.width}x{image.height}",
        **{name: fields for name, fields in found.items() if fields},
    }


def command(told: Facts) -> str:
    """How to ask for what A1111's `parameters` tell, as far as there is a way."""
    from undust.diffusion.samplers import SAMPLERS
    from undust.diffusion.schedules import SCHEDULES
    from undust.formats.named import built_in

    known = {"sampler": SAMPLERS, "schedule": SCHEDULES}
    options: list[object] = []
    for name in ("negative", "steps", "sampler", "schedule", "guidance", "seed", "clip_skip"):
        if name in told and told[name] in known.get(name, (told[name],)):
            options += [f"--{name.replace('_', '-')}", told[name]]
    width, height = told.get("width", 1), told.get("height", 1)
    if not (width % 8 or height % 8):  # other sizes are those of a picture begun from
        options += ["--size", f"{width}x{height}"]
    if "strength" in told:
        options += ["--init", "PICTURE", "--strength", told["strength"]]
    if upscale := told.get("upscale"):
        options += ["--upscale", "@".join(map(str, upscale.values()))]
    for lora in told.get("loras", ()):
        options += ["--lora", f"{lora['path']}{SUFFIX}:{lora['weight']}"]
    if refiner := told.get("refiner"):
        options += ["--refiner", f"{refiner['model']}{SUFFIX}@{refiner.get('after', 0.8)}"]
    if (model := told.get("model", "MODEL")) not in built_in():
        options += ["--model", f"{model}{SUFFIX}"]
    prompt = told.get("prompt", "")
    words = [*options, "--", prompt] if prompt.startswith("-") else [prompt, *options]
    return "undust generate " + shlex.join(map(str, words))
