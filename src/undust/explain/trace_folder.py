"""A trace as a folder: numbers as JSON, a strip, the maps of the words, and an animation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from undust.explain import trace_pictures
from undust.explain.trace import Trace, TraceStep
from undust.explain.word_maps import attention_shares, centres_of_mass
from undust.formats.files import atomic_folder, expanded, make_folder
from undust.formats.film import write_film

NUMBERS, STRIP, WORDS, ANIMATION = "trace.json", "strip.png", "words.png", "trace.webp"
FRAMES_PER_SECOND = 4.0
DIGITS = 4  # significant ones


def write_trace(
    folder: Path | str, trace: Trace, observe: Callable[[int, int], object] | None = None
) -> Path:
    """Writes a trace to a folder, completely or not at all, and returns its path.

    observe: called with the number of estimates decoded for it, and of all. Raises UndustError for
    a folder that exists and is not empty, and as `atomic_folder` does.
    """
    folder = expanded(folder)
    estimates = trace_pictures.decoded_estimates(trace, observe)
    recipe = trace.picture.recipe.model_dump(mode="json")
    make_folder(folder.parent)
    with atomic_folder(folder) as building:
        text = json.dumps(as_json(trace), ensure_ascii=False, indent=2)
        (building / NUMBERS).write_text(text + "\n", "utf-8")
        trace_pictures.strip(trace, estimates).save(building / STRIP, optimize=True)
        trace_pictures.word_sheet(trace).save(building / WORDS, optimize=True)
        shown = [*trace_pictures.frames(trace, estimates)]
        write_film(building / ANIMATION, shown, FRAMES_PER_SECOND, recipe)
    return folder


def as_json(trace: Trace) -> dict[str, Any]:
    """The numbers of a trace.

    Root mean squares are over the latent; guidance: of the difference that guidance multiplies,
    None without one; share and centre: as `attention_shares` and `centres_of_mass`; tokens: the
    places of a word's tokens, from the start token's 0.
    """
    words = [
        {"text": word.text, "tokens": word.places, **numbers}
        for word, numbers in zip(trace.words, _of_maps(trace.maps), strict=True)
    ]
    return {
        "recipe": trace.picture.recipe.model_dump(mode="json"),
        "words": words,
        "steps": [_of_step(step) for step in trace.steps],
    }


def _of_step(step: TraceStep) -> dict[str, Any]:
    return {
        "index": step.index,
        "sigma": _rounded(step.sigma),
        "x_rms": _root_mean_square(step.x),
        "x0_rms": _root_mean_square(step.x0),
        "guidance_rms": None if step.guidance is None else _root_mean_square(step.guidance),
        "words": _of_maps(step.maps),
    }


def _of_maps(maps: Tensor) -> list[dict[str, Any]]:
    return [
        {"share": _rounded(share), "centre": [_rounded(place) for place in centre]}
        for share, centre in zip(
            attention_shares(maps).tolist(), centres_of_mass(maps).tolist(), strict=True
        )
    ]


def _root_mean_square(x: Tensor) -> float:
    return _rounded(x.double().square().mean().sqrt().item())


def _rounded(number: float) -> float:
    """A finite number to a few significant digits."""
    assert math.isfinite(number)
    return float(f"{number:.{DIGITS}g}")
