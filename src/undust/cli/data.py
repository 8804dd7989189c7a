"""`undust data emoji` and `undust data check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undust.cli import console
from undust.cli.output import try_writing
from undust.errors import UndustError

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
    with console.counted("pictures", "drawing emoji") as observe:
        count = emoji.build(out, size, observe)
    samples = image_folder.read(out)
    held_out = sum(sample.split == "test" for sample in samples)
    keywords = sum("text_keywords" in sample.captions for sample in samples)
    console.line(out)
    console.summary(f"{count} pictures of {size}x{size}, {held_out} of them held out from training")
    if keywords:
        console.summary(f"{keywords} have keywords beside their names")
    else:
        console.note("names alone: CLDR's keywords come with `apt install unicode-cldr-core`")


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of pictures.")],
) -> None:
    """Report a data set's counts, sizes, captions, files that are not used, and broken ones."""
    from undust.datasets import image_folder

    with console.counted("pictures", "reading pictures") as observe:
        report = image_folder.check(folder, observe)
    found = report.folder
    console.facts(
        {
            "pictures": f"{report.pictures}{_splits(report)}",
            "groups": report.groups,
            "sizes": _largest(Counter({f"{w}x{h}": n for (w, h), n in report.sizes.items()})),
        }
    )
    if report.captions:
        console.table(
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
    for sentence in _on_captions(report):
        console.line(sentence)
    for what, count in report.conversions.items():
        console.line(f"{count} with {what}")
    if found.sidecars:
        console.line(f"captions from text files beside the pictures: {found.sidecars}")
    if found.unread_sidecars:
        count = found.unread_sidecars
        console.line(f"caption files not read, for the metadata has the captions: {count}")
    _list(found.unlisted, "not named in the metadata, and so not used")
    _list(found.hidden, "hidden or of the system, and so not used")
    _list(found.links, "links to nothing, or to a folder that is read already")
    _list(found.passed_over, "not read as pictures, and so not used")
    _list(report.broken, "broken")
    if report.broken:
        raise typer.Exit(FOUND_BROKEN)


def _on_captions(report: Report) -> Iterator[str]:
    """What a recipe for text would say of the captions."""
    from undust.conditioning import tokenizer as tokenizers
    from undust.training.captions import (
        CaptionSampler,
        CaptionsConfig,
        check_captions,
        too_long,
    )

    samples = [sample for sample in report.samples if sample.split == "train"]
    if not samples:
        yield "no picture is for training: all are held out, or none can be read"
        return
    config = CaptionsConfig()
    try:
        yield from check_captions(config, samples)
    except UndustError as error:
        yield str(error)
        return
    texts = CaptionSampler(config, [sample.captions for sample in samples]).all_texts()
    yield from too_long(config, samples, tokenizers.train(texts, config.vocabulary, config.length))


def _splits(report: Report) -> str:
    parts = ", ".join(f"{count} {split}" for split, count in sorted(report.splits.items()))
    return f" ({parts})" if set(report.splits) - {"train"} else ""


def _largest(counts: Counter[str]) -> str:
    most = ", ".join(f"{name} ({count})" for name, count in counts.most_common(SHOWN))
    return f"{most}, …" if len(counts) > SHOWN else most


def _list(names: list[str], what: str) -> None:
    if not names:
        return
    console.line(f"{len(names)} {what}:")
    for name in names[:SHOWN]:
        typer.echo(f"  {console.clean(name)}")
    if len(names) > SHOWN:
        typer.echo(f"  and {len(names) - SHOWN} more")
