"""The page of an explanation: one HTML file with all of its pictures, styles and scripts."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from undust.explain import chart
from undust.explain.effect import Effect, mean_and_deviation
from undust.explain.explanation import ExplainedPart, Explanation
from undust.explain.figures import Figure, Frames, LineChart
from undust.explain.texts import COMMON
from undust.regular import read_text
from undust.version import __version__
from undust.web import base_style, early_script, page_template, security_policy

TEMPLATE = Path(__file__).parent / "template"
QUALITY = 90  # of the pictures, as WebP
STRIP = 260.0, 26.0  # width and height of the dots of an effect


@dataclass(frozen=True)
class EffectRow:
    """An effect as a row of a table: texts, and the values of both as places of dots."""

    text: str
    whole: str
    changed: str
    difference: str
    verdict: str
    dots: list[tuple[float, float]]


def explanation_page(explanation: Explanation) -> str:
    """The page. It loads nothing, and runs no script but its own."""
    setup = explanation.setup
    common = setup.texts.part(COMMON)
    style = base_style() + read_text(TEMPLATE / "explanation.css")
    early, script = early_script(), read_text(TEMPLATE / "explanation.js")
    template = page_template(TEMPLATE / "explanation.html.jinja", path=_path, number=chart.short)
    return template.render(
        language=setup.texts.language,
        common=common,
        facts=[
            (common("model"), f"{setup.model.name} {setup.model.hash}"),
            (common("prompts"), "; ".join(dict.fromkeys(setup.prompts))),
            (common("seeds"), f"{setup.seeds[0]}–{setup.seeds[-1]}"),
            (common("settings"), common("settings_of", steps=setup.steps, s=f"{setup.guidance:g}")),
            (common("took"), common("seconds", n=round(sum(p.seconds for p in explanation.parts)))),
        ],
        parts=[_part(explanation, part) for part in explanation.parts],
        strip=STRIP,
        size=(chart.WIDTH, chart.HEIGHT),
        style=Markup(style),
        early=Markup(early),
        script=Markup(script),
        policy=security_policy(style, early, script),
        version=__version__,
    )


def _part(explanation: Explanation, part: ExplainedPart) -> dict[str, Any]:
    """What the template needs of a part."""
    texts = explanation.setup.texts
    effects = part.result.effects
    verdicts = [effect.verdict for effect in effects if effect.claim]
    return {
        "name": part.name,
        "number": part.number,
        "say": texts.part(part.name),
        "figures": [_figure(figure) for figure in part.result.figures],
        "effects": [_row(effect) for effect in effects],
        "held": sum(verdict == "as claimed" for verdict in verdicts),
        "claims": len(verdicts),
    }


def _figure(figure: Figure) -> dict[str, Any]:
    """A figure with its kind and what its form on the page needs."""
    if isinstance(figure, Frames):
        urls = [_data_url(image) for image in figure.images]
        return {"kind": "frames", "figure": figure, "urls": urls, "image": figure.images[0]}
    if isinstance(figure, LineChart):
        return {"kind": "chart", "figure": figure, "drawn": chart.drawn(figure)}
    return {"kind": "table", "figure": figure}


def _row(effect: Effect) -> EffectRow:
    def shown(values: tuple[float, float]) -> str:
        return "{:.{digits}f} ± {:.{digits}f}".format(*values, digits=effect.digits)

    every = [*effect.values, *effect.reference]
    low, high = min(every), max(every)
    width, height = STRIP[0] - 16, STRIP[1]
    dots = [
        (round(8 + width * (value - low) / ((high - low) or 1), 1), height * share)
        for share, values in ((0.28, effect.reference), (0.72, effect.values))
        for value in values
    ]
    return EffectRow(
        effect.text,
        shown(mean_and_deviation(effect.reference)),
        shown(mean_and_deviation(effect.values)),
        "{:+.{digits}f} ± {:.{digits}f}".format(*effect.difference, digits=effect.digits),
        effect.verdict.replace(" ", "_"),
        dots,
    )


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _path(places: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
