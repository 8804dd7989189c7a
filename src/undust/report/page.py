"""The page of a report: one HTML file with all of its pictures, styles and scripts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from markupsafe import Markup

from undust.errors import UndustError
from undust.formats.files import atomic_write
from undust.regular import read_text
from undust.report import run
from undust.report.charts import HEIGHT, MAX_POINTS, WIDTH
from undust.report.run import RunReport
from undust.version import __version__
from undust.web import base_style, early_script, inert_json, page_template, security_policy

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
    style = base_style() + _files("uplot/uPlot.min.css", "report.css")
    early = early_script()
    script = _files("uplot/uPlot.iife.min.js", "report.js")
    return page_template(TEMPLATE / "report.html.jinja", number=_number).render(
        title=title,
        reports=reports,
        style=Markup(style),
        early=Markup(early),
        script=Markup(script),
        policy=security_policy(style, early, script),
        licence=Markup(_files("uplot/LICENSE").replace("--", "- -")),
        charts=Markup(inert_json([_series(report) for report in reports])),
        width=WIDTH,
        height=HEIGHT,
        version=__version__,
        written=run.moment(time.time()),
    )


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


def _number(value: float) -> str:
    return f"{value:.4g}"
