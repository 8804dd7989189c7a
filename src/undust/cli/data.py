"""`undust data emoji` and `undust data check`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undust.cli import show
from undust.cli.output import try_writing

if TYPE_CHECKING:
    from undust.datasets.image_folder import Report

SHOWN = 20  # lines of each list
FOUND_BROKEN = 1  # exit code of a check that found something

app = typer.Typer(help="Build a data set, or check one.")


@app.command()
def emoji(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to build the data set in.")],
    size: Annotated[int, typer.Option(metavar="N", help="Side of the pictures, pixels.")] = 64,
) -> None:
    """Draw every emoji of the system's font, with its names in many languages."""
    from undust.datasets import emoji, image_folder

    try_writing(out)
    with show.counted("pictures", "drawing emoji") as observe:
        count = emoji.build(out, size, observe)
    samples = image_folder.read(out)
    held_out = sum(sample.split == "test" for sample in samples)
    keywords = sum("text_keywords" in sample.captions for sample in samples)
    show.line(out)
    show.summary(f"{count} pictures of {size}x{size}, {held_out} of them held out from training")
    if keywords:
        show.summary(f"{keywords} have keywords beside their names")
    else:
        show.note("names alone: CLDR's keywords come with `apt install unicode-cldr-core`")


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of pictures.")],
) -> None:
    """Report a data set's counts, sizes, captions and broken files."""
    from undust.datasets import image_folder

    report = image_folder.check(folder)
    show.facts(
        {
            "pictures": f"{report.pictures}{_splits(report)}",
            "groups": report.groups,
            "sizes": _largest(Counter({f"{w}x{h}": n for (w, h), n in report.sizes.items()})),
        }
    )
    if report.captions:
        show.table(
            ["captions", "pictures>", "characters", "missing>"],
            [
                [
                    name,
                    count,
                    f"{min(report.lengths[name])}–{max(report.lengths[name])}",
                    report.pictures - count or "",
                ]
                for name, count in sorted(report.captions.items())
            ],
        )
    _list(report.unlisted, "not named in metadata.jsonl, and so not used")
    _list(report.broken, "broken")
    if report.broken:
        raise typer.Exit(FOUND_BROKEN)


def _splits(report: Report) -> str:
    parts = ", ".join(f"{count} {split}" for split, count in sorted(report.splits.items()))
    return f" ({parts})" if len(report.splits) > 1 else ""


def _largest(counts: Counter[str]) -> str:
    most = ", ".join(f"{name} ({count})" for name, count in counts.most_common(SHOWN))
    return f"{most}, …" if len(counts) > SHOWN else most


def _list(names: list[str], what: str) -> None:
    if not names:
        return
    show.line(f"{len(names)} {what}:")
    for name in names[:SHOWN]:
        typer.echo(f"  {show.clean(name)}")
    if len(names) > SHOWN:
        typer.echo(f"  and {len(names) - SHOWN} more")
