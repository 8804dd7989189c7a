"""Output as Markdown tables and a PNG plot by matplotlib (the extra `plots`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from undust.errors import UndustError
from undust.formats.files import atomic, atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from undust.lab.samplers import Comparison, Curve

MARKERS = "os^vD<>pX*"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a column whose name ends in ">" is aligned to the right."""
    head = [column.rstrip(">") for column in columns]
    rule = ["---:" if column.endswith(">") else "---" for column in columns]
    lines = ([str(cell).replace("|", "\\|") for cell in row] for row in (head, rule, *rows))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(path: Path, title: str, command: str, parts: Sequence[str]) -> None:
    """A page of a title, the command that makes it, and paragraphs or tables."""
    begin = f"# {title}\n\n```sh\n{command}\n```\n"
    atomic_write(path, "\n".join([begin, *(f"{part.strip()}\n" for part in parts)]).encode())


def require_matplotlib() -> None:
    """Raises UndustError without matplotlib, before the work is done."""
    try:
        import matplotlib.figure  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise UndustError(
            "the plot needs matplotlib; install it with pip install 'undust[plots]'"
        ) from None


def plot(found: Comparison, path: Path) -> None:
    """Error against network calls, both logarithmic: samplers on flow and path, and schedules."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 7), layout="constrained")
    on = {
        "samplers to the end of the flow": [c for c in found.samplers if c.against == "flow"],
        "samplers to the end of their path": [c for c in found.samplers if c.against == "path"],
        f"schedules of {found.sampler}": found.schedules,
    }
    for axes, (title, curves) in zip(figure.subplots(1, 3, sharey=True), on.items(), strict=True):
        _draw(axes, title, curves)
    figure.suptitle(
        f"{found.model} {found.model_hash}: root mean square error of the latent, "
        f"{found.pictures} pictures, guidance {found.guidance:g}"
    )
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _draw(axes: Axes, title: str, curves: Iterable[Curve]) -> None:
    for number, curve in enumerate(curve for curve in curves if curve.runs):
        axes.plot(
            [run.calls for run in curve.runs],
            [run.error for run in curve.runs],
            label=curve.name,
            color=f"C{number % 10}",
            marker=MARKERS[number % 10],
            linestyle=("-", "--", ":")[number // 10 % 3],
            markersize=4,
        )
    axes.set(title=title, xlabel="network calls", xscale="log", yscale="log")
    axes.set_xticks([5, 10, 20, 50], labels=["5", "10", "20", "50"])
    axes.tick_params(axis="x", which="minor", labelbottom=False)
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=7)
