#!/usr/bin/env python3
"""Write docs/why from two folders of `undust explain`, one in each language.

undust explain --out why-en
undust explain --lang ko --out why-ko
.venv/bin/python scripts/why_pages.py why-en why-ko
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from undust.engines.processor import processor
from undust.explain.effect import mean_and_deviation
from undust.explain.parts import PARTS
from undust.explain.texts import COMMON, LANGUAGES, Language, Translation

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "why"
QUALITY = 45  # of the sheets, as WebP


def main() -> None:
    """Writes a page and the sheets of each language."""
    (FOLDER / "pictures").mkdir(parents=True, exist_ok=True)
    for language, made in zip(LANGUAGES, map(Path, sys.argv[1:]), strict=True):
        told = {name: json.loads((made / f"{name}.json").read_text("utf-8")) for name in PARTS}
        for name in PARTS:
            with Image.open(made / f"{name}.png") as sheet:
                to = FOLDER / "pictures" / f"{name}-{language}.webp"
                sheet.save(to, quality=QUALITY, method=6)
        page = "\n\n".join(why_page(language, told)) + "\n"
        (FOLDER / f"{language}.md").write_text(page, "utf-8", newline="\n")


def why_page(language: Language, told: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The page in a language, paragraph by paragraph; told: the JSON of each part."""
    common = Translation(language).part(COMMON)
    option = "" if language == "en" else f" --lang {language}"
    first = next(iter(told.values()))
    yield f"# {common('title')}"
    yield common("lead")
    yield f"```sh\nundust explain{option} --out why-{language}\n```"
    yield common(
        "made_with",
        model=f"{first['model']} {first['model_hash']}",
        seeds=len(first["seeds"]),
        steps=first["steps"],
        pictures=first["pictures"],
        processor=processor(),
    )
    for number, name in enumerate(told, 1):
        say = Translation(language).part(name)
        yield f"## {number}. {say('title')}"
        yield f"**{say('question')}**"
        yield say("why").strip()
        yield f"> **{common('claim')}:** {say('without')}"
        yield say("reading")
        yield f"```sh\nundust explain {name}{option}\n```"
        yield f"![{say('title')}](pictures/{name}-{language}.webp)"
        names = ("effect", "part_whole", "part_changed", "difference", "verdict")
        head = " | ".join(common(each) for each in names)
        rows = [f"| {head} |", "|---|---|---|---|---|"]
        rows += [_row(effect, common) for effect in told[name]["effects"]]
        yield "\n".join(rows)
    yield common("how_to_read")


def _row(effect: dict[str, Any], common: Any) -> str:
    whole, changed = (
        "{:.4g} ± {:.2g}".format(*mean_and_deviation(effect[key]))
        for key in ("reference", "values")
    )
    difference = f"{effect['mean_difference']:+.3g} ± {effect['half_of_95_percent_interval']:.2g}"
    cells = (
        effect["text"],
        whole,
        changed,
        difference,
        common(effect["verdict"].replace(" ", "_")),
    )
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


if __name__ == "__main__":
    main()
