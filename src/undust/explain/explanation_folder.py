"""An explanation as a folder: one page, and each part as a picture and as numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from undust.explain.effect import Effect
from undust.explain.explanation import ExplainedPart, Explanation
from undust.explain.figures import LineChart, TextTable
from undust.explain.page import explanation_page
from undust.explain.part_sheet import part_sheet
from undust.formats.files import atomic_folder, expanded, make_folder

PAGE = "index.html"
DIGITS = 6  # significant ones


def write_explanation(folder: Path | str, explanation: Explanation) -> Path:
    """Writes index.html and for each part NAME.png and NAME.json, completely or not at all.

    Returns the folder. Raises UndustError for a folder that exists and is not empty, and as
    `atomic_folder` does.
    """
    folder = expanded(folder)
    make_folder(folder.parent)
    with atomic_folder(folder) as building:
        (building / PAGE).write_text(explanation_page(explanation), "utf-8")
        for part in explanation.parts:
            sheet = part_sheet(part, explanation.setup.texts)
            sheet.save(building / f"{part.name}.png")
            text = json.dumps(rounded(as_json(explanation, part)), ensure_ascii=False, indent=2)
            (building / f"{part.name}.json").write_text(text + "\n", "utf-8")
    return folder


def as_json(explanation: Explanation, part: ExplainedPart) -> dict[str, Any]:
    """The numbers of a part: its effects with all values, its charts, and what it was shown on."""
    setup = explanation.setup
    return {
        "part": part.name,
        "model": setup.model.name,
        "model_hash": setup.model.hash,
        "prompts": [*setup.prompts],
        "seeds": [*setup.seeds],
        "steps": setup.steps,
        "guidance": setup.guidance,
        "pictures": len(setup.pictures),
        "effects": [_of_effect(effect) for effect in part.result.effects],
        "charts": [
            {
                "title": figure.title,
                "x": figure.x,
                "y": figure.y,
                "lines": [
                    {"name": line.name, "x": line.x, "y": line.y, "spread": line.spread}
                    for line in figure.lines
                ],
            }
            for figure in part.result.figures
            if isinstance(figure, LineChart)
        ],
        "tables": [
            {"title": figure.title, "columns": figure.columns, "rows": figure.rows}
            for figure in part.result.figures
            if isinstance(figure, TextTable)
        ],
        "numbers": part.result.numbers,
    }


def _of_effect(effect: Effect) -> dict[str, Any]:
    mean, half = effect.difference
    return {
        "name": effect.name,
        "text": effect.text,
        "values": effect.values,
        "reference": effect.reference,
        "mean_difference": mean,
        "half_of_95_percent_interval": half,
        "claim": effect.claim,
        "verdict": effect.verdict,
    }


def rounded(value: Any) -> Any:
    """Plain values with numbers to a few significant digits; None for those not finite."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): rounded(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [rounded(each) for each in value]
    return value
