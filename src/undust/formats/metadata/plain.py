"""Programs of macOS that write their settings in words: Draw Things and Mochi Diffusion."""

from __future__ import annotations

import re

from undust.formats.a1111_lines import parted, settings_in
from undust.formats.metadata.found import SIZE, Found, as_number

MOCHI_SIGN = "Generator: Mochi Diffusion"
MOCHI_VERSION = re.compile(r"Metadata Version: \d+\n")  # from version 2 on one value a line
MOCHI = {
    "Prompt": "prompt",  # the first versions'
    "Negative": "negative",
    "Guidance": "guidance",
    "Include in Image": "prompt",
    "Exclude from Image": "negative",
    "Guidance Scale": "guidance",
    "Seed": "seed",
    "Steps": "steps",
    "Scheduler": "sampler",
    "Model": "model",
}
# The next name of one of its values, where they are parted by "; " and not escaped.
MOCHI_NEXT = re.compile(r"; (?=[A-Z][A-Za-z ]{2,20}: )")
ESCAPES = {"\\n": "\n", "\\r": "\r", "\\\\": "\\"}
DRAW_THINGS_SIGN = re.compile(r"^Steps: \d+, Sampler: [^,\n]*, Guidance Scale: ", re.MULTILINE)
DRAW_THINGS = {
    "Steps": "steps",
    "Sampler": "sampler",
    "Guidance Scale": "guidance",
    "Seed": "seed",
    "Model": "model",
}


def mochi(text: str) -> Found | None:
    """Mochi Diffusion: values by name in IPTC's caption, one a line or parted by "; "."""
    version = MOCHI_VERSION.match(text)
    lines = text[version.end() :].split("\n") if version else MOCHI_NEXT.split(text)
    if not any(line.startswith(MOCHI_SIGN) for line in lines):
        return None
    found = Found("Mochi Diffusion")
    told: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if version:
            value = re.sub(r"\\[nr\\]", lambda escape: ESCAPES[escape[0]], value)
        told.setdefault(name.strip(), value.strip())
    _take_size(found, told)
    found.take(told, MOCHI)
    return found


def draw_things(text: str) -> Found | None:
    """Draw Things: the prompt, the negative one after a hyphen, and the line of settings."""
    if not DRAW_THINGS_SIGN.search(text):
        return None
    found = Found("Draw Things")
    lines, line, _ = parted(text)
    hyphens = [place for place, each in enumerate(lines) if each.startswith("-")]
    end = hyphens[-1] if hyphens else len(lines)
    found.recipe["prompt"] = "\n".join(lines[:end]).strip()
    found.recipe["negative"] = "\n".join(lines[end:])[1:].strip()
    settings = settings_in(line)
    told = dict(settings)
    _take_size(found, told)
    if as_number(strength := told.pop("Strength", "1"), float) != 1:
        found.set("strength", strength, "Strength")
    names, weights = (
        [value for name, value in settings if name == f"LoRA {each}"][:64]
        for each in ("Model", "Weight")
    )
    for name, weight in zip(names, weights, strict=False):
        if name:
            found.add_lora(name, weight)
    for each in ("Model", "Weight"):
        told.pop(f"LoRA {each}", None)
    found.take(told, DRAW_THINGS)
    return found


def _take_size(found: Found, told: dict[str, str]) -> None:
    """Moves the size from the values to the recipe, if it is one."""
    if size := SIZE.fullmatch(told.get("Size", "")):
        del told["Size"]
        found.recipe["width"], found.recipe["height"] = int(size[1]), int(size[2])
