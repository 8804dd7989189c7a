"""The program that wrote a picture's texts, and the settings in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from undust.formats.a1111 import parse_a1111
from undust.formats.a1111_lines import SETTINGS_LINE
from undust.formats.metadata import comfyui, flat, fooocus, invokeai, novelai, plain
from undust.formats.metadata.containers import A1111_KEY
from undust.formats.metadata.found import Found, as_object

A1111 = "A1111"
JSON_START = re.compile(r'\{\s*"[^"]{1,200}"\s*:')  # the beginning of a JSON object
JSON_KEYS = ("prompt", "invokeai_metadata", "sd-metadata", "generation_data")


def read(texts: Mapping[str, str]) -> Found | None:
    """The settings by the program that wrote a picture, or None if none is known.

    Where several wrote, the plainest text counts, and a note names the others. Raises UndustError
    for texts with more values than can be meant.
    """
    found = list(_all(texts))
    if not found:
        return None
    first, *others = found
    if others:
        names = ", ".join(each.program for each in others)
        first.notes.append(f"the picture also has settings of {names}, which are not shown")
    return first


def _all(texts: Mapping[str, str]) -> Iterator[Found]:
    """The settings of each program found, the most reliable first."""
    # Converters of pictures keep the web UI's text under keys of their own.
    kept = (text for text in texts.values() if SETTINGS_LINE.search(text))
    parameters = (texts.get(A1111_KEY) or next(kept, "")).strip("\0\ufeff \t\r\n")
    told = as_object(parameters) if parameters.startswith("{") else {}
    if isinstance(inner := told.get(A1111_KEY), str):
        parameters, told = inner, {}
    # A prompt may begin with a bracket, but not like a JSON object.
    broken = not told and JSON_START.match(parameters) is not None and "\nSteps: " not in parameters
    words = parameters if not told and not broken else ""
    in_words = plain.mochi(words) or plain.draw_things(words)
    readings = (
        in_words or (_a1111(texts, words) if words else None),
        flat.swarmui(told),
        comfyui.read(parameters) if told else None,
        fooocus.read(told, texts.get("fooocus_scheme", "")),
        flat.draw_things(told),
        flat.easy_diffusion(told) or flat.easy_diffusion(texts),
        flat.civitai(told),
        flat.tensor_art(told),
        flat.tensor_art(as_object(texts.get("generation_data", "").strip("\0"))),
        novelai.read(texts) or novelai.read({k: v for k, v in told.items() if isinstance(v, str)}),
        invokeai.read(texts),
        comfyui.read(texts.get("prompt", "")),
    )
    known = [each for each in readings if each]
    yield from known
    if known:
        return
    values = {key: text for key, text in texts.items() if not text.lstrip().startswith(("{", "["))}
    unread = [key for key in JSON_KEYS if key in texts and key not in values]
    unread += [A1111_KEY] * broken
    if told or (JSON_KEYS[0] in values):
        yield flat.unknown(told or values)
    elif unread:
        yield Found("an unknown program", notes=[f"{key}: it cannot be read" for key in unread])
    elif comfyui.is_workflow(texts.get("workflow", "")):
        yield Found(
            comfyui.PROGRAM,
            notes=["there is the editor's workflow alone; the graph as it was run is not there"],
        )


def _a1111(texts: Mapping[str, str], text: str) -> Found:
    """The settings in the web UI's text, and the program that wrote it."""
    recipe = parse_a1111(text)
    other, notes = recipe.pop("other", {}), recipe.pop("notes", [])
    program = A1111
    if texts.get("fooocus_scheme"):
        program = f"{A1111} (Fooocus)"
    elif "Civitai resources" in other:
        program = f"{A1111} (Civitai)"
    elif (app := other.get("App")) or str(other.get("Version", "")).startswith("f"):
        program = f"{A1111} ({app or 'Forge'})"
    return Found(program, recipe, other, notes)
