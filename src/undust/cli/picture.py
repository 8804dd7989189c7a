"""Facts about pictures and films for `undust inspect`; the command line nearest to settings."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

from undust.errors import UndustError, printable

SUFFIX = ".safetensors"
# Fields of a recipe that are shown first.
FIRST_FIELDS = ("prompt", "negative", "steps", "sampler", "schedule", "guidance", "seed")
# Options that take a recipe's value as it is, in the order of the command.
PLAIN_OPTIONS = ("negative", "steps", "sampler", "schedule", "guidance", "seed", "clip_skip")
MAX_PROMPT = 10_000  # characters of a prompt
Facts = dict[str, Any]


def describe(path: Path, kind: str) -> Facts:
    """The size of a picture or film, and the settings stored in it; of an MP4 its settings alone.

    Raises UndustError for a damaged picture or film.
    """
    from undust.formats.metadata import containers, programs
    from undust.formats.recipe_png import KEY, read_recipe
    from undust.pictures import LARGEST, animation, size_of

    film = kind == "MP4"
    facts: Facts = {"path": str(path), "kind": "film" if film else "picture", "format": kind}
    if not film:
        width, height = size_of(path)
        facts["pixels"] = f"{width}x{height}"
        if width * height <= LARGEST and (frames := animation(path)[0]) > 1:
            facts |= {"kind": "film", "frames": frames}
    if kind not in containers.READ:
        return facts
    texts = containers.read(path)
    if KEY in texts.found:
        recipe = read_recipe(path)
        own = {name: recipe[name] for name in FIRST_FIELDS if name in recipe} | recipe
        return {**facts, "recipe": own, **({"notes": texts.notes} if texts.notes else {})}
    try:
        found = programs.read(texts.found)
    except UndustError as error:
        raise UndustError(f"{path}: {error}") from error
    notes = [*texts.notes, *(found.notes if found else [])]
    if found:
        facts["program"] = found.program
        settings = {
            name: found.recipe[name] for name in FIRST_FIELDS if name in found.recipe
        } | found.recipe
        facts[found.program.partition(" (")[0]] = {
            name: value for name, value in settings.items() if value not in ("", None)
        }
        facts["other settings"] = found.other
        if found.recipe:
            facts["command"], left_out = command(found.recipe)
            notes += left_out
    facts["notes"] = notes
    return {name: value for name, value in facts.items() if value not in ({}, [])}


def command(settings: Facts) -> tuple[str, list[str]]:
    """The command line nearest to another program's settings, and a note on each omitted value.

    Every value in it is valid in a recipe.
    """
    from undust.formats.locate import built_in

    notes: list[str] = []
    given = _valid_settings(settings, notes)
    options: list[str] = []
    if "clip_skip" in given:
        notes.append(
            f"--clip-skip {given['clip_skip']} is for Stable Diffusion 1; leave it out for 2 and "
            "XL, which never use the last layer: most programs do not count it there"
        )

    def add(option: str, value: object) -> None:
        text = _plain(value)
        options.extend([f"{option}={text}"] if text.startswith("-") else [option, text])

    for name in PLAIN_OPTIONS:
        if name in given:
            add(f"--{name.replace('_', '-')}", given[name])
    if "size" in given:
        add("--size", given["size"])
    if "strength" in given:
        add("--init", "PICTURE")
        add("--strength", given["strength"])
    if upscale := given.get("upscale"):
        add("--upscale", "@".join(map(_plain, upscale.values())))
    for lora in given.get("loras", ()):
        add("--lora", f"{lora['path']}:{_plain(lora['weight'])}")
    if refiner := given.get("refiner"):
        add("--refiner", f"{refiner['model']}@{_plain(refiner.get('after', 0.8))}")
    if (model := given["model"]) not in built_in():
        add("--model", model)
    prompt: str = given["prompt"]
    words = [*options, "--", prompt] if prompt.startswith("-") else [prompt, *options]
    return f"undust generate {shlex.join(words)}", notes


def _valid_settings(told: Facts, notes: list[str]) -> Facts:
    """The values that are valid in a recipe, with a note on each of the others."""
    from undust.formats.locate import built_in

    given: Facts = {name: _prompt(name, told, notes) for name in ("prompt", "negative")}
    if given["prompt"] == "-":
        given["prompt"] = "- "  # alone it would stand for the standard input
    if not told.get("negative"):
        del given["negative"]
    for name in ("steps", "sampler", "schedule", "guidance", "seed", "clip_skip", "strength"):
        if name in told and _valid(name, told[name], notes):
            given[name] = told[name]
    if "upscale" in told and _valid("upscale", told["upscale"], notes):
        given["upscale"] = told["upscale"]
    loras = [{**each, "path": _file(each["path"], notes)} for each in told.get("loras", ())]
    if kept := [each for each in loras if _valid("loras", [each], notes)]:
        given["loras"] = kept
    if "refiner" in told:
        refiner = {**told["refiner"], "model": _file(told["refiner"]["model"], notes)}
        if _valid("refiner", refiner, notes):
            given["refiner"] = refiner
    if size := _size(told, notes):
        given["size"] = size
    model = told.get("model", "MODEL")
    given["model"] = model if model in built_in() else _file(model, notes)
    return _together(given, notes)


def _valid(name: str, value: object, notes: list[str]) -> bool:
    """Whether a value is valid in a recipe by itself; if not, with a note."""
    from undust.diffusion.aliases import no_counterpart
    from undust.diffusion.samplers import SAMPLERS
    from undust.diffusion.schedules import SCHEDULES, listed
    from undust.recipe.request import SEEDS

    match name, value:
        case "seed", -1:
            notes.append("seed: -1 means random; left out")
            return False
        case "seed", int(seed) if not 0 <= seed < SEEDS:
            notes.append(f"seed: {printable(seed)} is outside of 0 to {SEEDS - 1}; left out")
            return False
        case "sampler", str(text) if text not in SAMPLERS:
            notes.append(f"{no_counterpart(name, printable(text))}; left out")
            return False
        case "schedule", str(text) if text not in SCHEDULES:
            with suppress(UndustError):
                if listed(text):
                    return True
            notes.append(f"{no_counterpart(name, printable(text))}; left out")
            return False
        case _:
            return not (fault := _fault({name: value})) or bool(notes.append(fault))


def _fault(given: Facts) -> str:
    """The reason why values are not valid in a recipe; "" if they are."""
    from undust.recipe.recipe import Recipe

    fields: Facts = {"prompt": "", "seed": 0, "width": 8, "height": 8, **given}
    if "strength" in given:
        fields["init"] = {"path": "PICTURE"}
    if size := fields.pop("size", None):
        fields["width"], fields["height"] = map(int, size.split("x"))
    try:
        Recipe.read(fields)
    except UndustError as error:
        return f"{error}; left out"
    return ""


def _together(given: Facts, notes: list[str]) -> Facts:
    """The values that are valid together: without a size that upscaling makes too large."""
    given = dict(given)
    for name in ("", "upscale", "size", "schedule", "loras"):
        fault = _fault({name: value for name, value in given.items() if name != "model"})
        if not fault:
            break
        if given.pop(name, None) is not None:
            notes.append(f"{name} is left out: {fault.removesuffix('; left out')}")
    return given


def _size(told: Facts, notes: list[str]) -> str:
    """The value of --size, or "": with an initial image its size is used."""
    width, height = told.get("width"), told.get("height")
    if width is None or height is None:
        return ""
    if width % 8 or height % 8:
        if "strength" not in told:
            notes.append(f"size: {width}x{height} is not a multiple of 8; left out")
        return ""
    size = f"{width}x{height}"
    if not (0 < width < 10**6 and 0 < height < 10**6):
        notes.append(f"size: {printable(size)} is not valid; left out")
        return ""
    return size if _valid("size", size, notes) else ""


def _prompt(name: str, told: Facts, notes: list[str]) -> str:
    """A prompt for the command line: in one line, with valid weights."""
    from undust.conditioning.prompt import escape, parse

    text = _printable(str(told.get(name) or ""))
    if len(text) > MAX_PROMPT:
        notes.append(f"{name}: it has {len(text):,} characters, at most {MAX_PROMPT:,}; truncated")
        text = text[:MAX_PROMPT]
    try:
        parse(text)
    except UndustError as error:
        notes.append(f"{name}: its brackets are escaped: {error}")
        text = escape(text)[:MAX_PROMPT]
    return text


def _file(name: str, notes: list[str]) -> str:
    """The safetensors file of a model known by name; a pickle has to be converted."""
    from undust.formats.metadata.found import MODEL_FILE

    name = _printable(name)[:200]
    if not MODEL_FILE.search(name):
        return name + SUFFIX
    if name.lower().endswith((SUFFIX, ".sft")):
        return name
    converted = MODEL_FILE.sub(SUFFIX, name)
    notes.append(
        f"{printable(name)} is a pickle: convert it to {printable(converted)} with undust convert"
    )
    return converted


def _plain(value: object) -> str:
    """The text of a value for an option: numbers without exponent."""
    text = str(value)
    return f"{Decimal(text):f}" if isinstance(value, float) and "e" in text else text


def _printable(text: str) -> str:
    """A text in one line, without characters that a command line cannot have."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "", re.sub(r"[\t\n\r]", " ", text))
