"""InvokeAI: `invokeai_metadata` (from version 3), `sd-metadata` (version 2) and `Dream` before."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from undust.errors import limit_entries
from undust.formats.metadata.found import Found, as_list, as_object, texts_of

PROGRAM = "InvokeAI"
FIELDS = {
    "positive_prompt": "prompt",
    "negative_prompt": "negative",
    "seed": "seed",
    "steps": "steps",
    "cfg_scale": "guidance",
    "scheduler": "sampler",
    "sampler": "sampler",
    "width": "width",
    "height": "height",
    "clip_skip": "clip_skip",
    "strength": "strength",
}
OPTIONS = {  # of `Dream`, a command line
    "-s": "steps",
    "-S": "seed",
    "-W": "width",
    "-H": "height",
    "-C": "guidance",
    "-A": "sampler",
    "-f": "strength",
}
NEGATIVE = re.compile(r"\[([^\[\]]*)\]")  # in version 2's prompts
EMPHASIS = re.compile(r"\w(?:\+{1,9}|-{2,9})(?:\s|,|$)|\)(?:\+{1,9}|-{1,9}|\d)")


def read(texts: Mapping[str, str]) -> Found | None:
    """The settings in the newest of the formats that is present, or None."""
    if told := as_object(texts.get("invokeai_metadata", "")):
        found = _version_3(told)
    elif told := as_object(texts.get("sd-metadata", "")):
        found = _version_2(told)
    elif dream := texts.get("Dream") or texts.get("dream"):
        found = _dream(dream)
    else:
        return None
    prompts = [str(found.recipe.get(name, "")) for name in ("prompt", "negative")]
    if any(EMPHASIS.search(prompt) for prompt in prompts):
        found.notes.append(
            "its emphasis, word++ and (word)1.3, is read as plain text here; use (word:1.3)"
        )
    if found.recipe.get("clip_skip") == 0:
        del found.recipe["clip_skip"]
    return found


def _version_3(told: dict[str, Any]) -> Found:
    found = Found(PROGRAM)
    model, loras = as_object(told.pop("model", None)), as_list(told.pop("loras", None))
    if told.get("generation_mode") in ("txt2img", "sdxl_txt2img"):
        told.pop("strength", None)
    found.take(told, FIELDS)
    _model(found, model)
    limit_entries("InvokeAI's loras", loras)
    for each in map(as_object, loras):
        lora = as_object(each.get("model")) or as_object(each.get("lora"))
        names = texts_of([lora.get("name"), lora.get("model_name"), each.get("lora")])
        if names:
            found.add_lora(names[0], each.get("weight", 1))
    return found


def _model(found: Found, model: Mapping[str, Any]) -> None:
    for name in texts_of([model.get("name"), model.get("model_name")])[:1]:
        found.set("model", name)
    for digits in texts_of([model.get("hash")]):
        found.other["model hash"] = digits


def _version_2(told: dict[str, Any]) -> Found:
    found = Found(PROGRAM)
    image = dict(as_object(told.get("image")))
    prompt = image.pop("prompt", None)
    parts = [as_object(each).get("prompt") for each in as_list(prompt)]
    _prompts(found, ", ".join(texts_of(parts or [prompt])))
    if image.get("type") == "txt2img":
        image.pop("strength", None)
    found.take(image, FIELDS)
    for name in texts_of([told.get("model_weights")]):
        found.set("model", name)
    return found


def _dream(text: str) -> Found:
    """Of `"a cat [blurry]" -s 50 -S 1 -W 512 -H 512 -C 7.5 -A k_lms`."""
    found = Found(PROGRAM)
    quoted = re.match(r'\s*"((?:\\.|[^\\"])*)"', text)
    prompt, rest = (quoted[1], text[quoted.end() :]) if quoted else _bare(text)
    _prompts(found, re.sub(r"\\(.)", r"\1", prompt))
    try:
        words = shlex.split(rest)
    except ValueError:
        words = rest.split()
    for word, value in pairwise([*words, ""]):
        option, joined = word[:2], word[2:]  # -s50 and -s 50
        if option in OPTIONS:
            found.set(OPTIONS[option], joined or value, option)
    if not any(word.startswith("-I") for word in words):  # of a picture begun from
        found.recipe.pop("strength", None)
    return found


def _bare(text: str) -> tuple[str, str]:
    prompt, option, rest = text.partition(" -")
    return prompt, option + rest


def _prompts(found: Found, prompt: str) -> None:
    """Splits off the negative prompt, in square brackets as in version 2."""
    negatives = NEGATIVE.findall(prompt)
    found.recipe["prompt"] = NEGATIVE.sub("", prompt).strip()
    if negatives:
        found.recipe["negative"] = ", ".join(each.strip() for each in negatives)
