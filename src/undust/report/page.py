"""The page of a report: one HTML file with all of its pictures, styles and scripts."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from undust.errors import UndustError
from undust.formats.files import atomic_write
from undust.regular import read_text
from undust.report import run
from undust.report.charts import HEIGHT, MAX_POINTS, WIDTH
from undust.report.run import RunReport
from undust.version import __version__

NAME = "report.html"
PICTURES = 12 * 2**20  # bytes of all previews; the page is a third larger than its pictures
MAX_RUNS = 20
TEMPLATE = Path(__file__).parent / "template"


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Writes the report on the run in a folder, or on the runs one level below; returns its path.

    out: the file; by default `report.html` in the folder. Raises UndustError if there is no run,
    and if the file cannot be written.
    """
    folders = run.find(folder)
    out = out or folder / NAME
    if out.is_dir():
        raise UndustError(f"{out} is a folder; --out is the file of the report")
    shown = folders[:MAX_RUNS]
    points = 3 * MAX_POINTS // (2 + len(shown))
    reports = [run.read(each, PICTURES // len(shown), points) for each in shown]
    if len(folders) > len(shown):
        reports[-1].remarks.append(f"{len(folders) - len(shown)} more runs are not on this page")
    atomic_write(out, html(folder.resolve().name, reports).encode("utf-8", "replace"))
    return out


def html(title: str, reports: list[RunReport]) -> str:
    """The page on these runs. It loads nothing, and runs no script but its own."""
    style = _files("uplot/uPlot.min.css", "report.css")
    early = _files("early.js")
    script = _files("uplot/uPlot.iife.min.js", "report.js")
    return _template().render(
        title=title,
        reports=reports,
        style=Markup(style),
        early=Markup(early),
        script=Markup(script),
        policy=_policy(style, early, script),
        licence=Markup(_files("uplot/LICENSE").replace("--", "- -")),
        charts=Markup(_json([_series(report) for report in reports])),
        width=WIDTH,
        height=HEIGHT,
        version=__version__,
        written=run.moment(time.time()),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    return environment.get_template("report.html.jinja")


def _series(report: RunReport) -> list[dict[str, Any]]:
    return [
        {
            "steps": chart.steps,
            "span": chart.span,
            "positive": chart.positive,
            "log": chart.logarithmic,
            "series": [
                {"name": each.name, "role": each.role, "colour": each.colour, "values": each.values}
                for each in chart.series
            ],
        }
        for chart in report.charts
    ]


def _files(*names: str) -> str:
    return "\n".join(read_text(TEMPLATE / name) for name in names)


def _policy(style: str, *scripts: str) -> str:
    """A content security policy: no network, and only these styles and scripts."""

    def source(text: str) -> str:
        digest = hashlib.sha256(text.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    allowed = " ".join(map(source, scripts))
    return (
        f"default-src 'none'; img-src data:; style-src {source(style)}; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )


def _json(value: object) -> str:
    """JSON that is inert within a script element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _number(value: float) -> str:
    return f"{value:.4g}"
