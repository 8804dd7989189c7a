"""`undust data check` and `undust data encode`."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undust.cli import console
from undust.errors import UndustError

if TYPE_CHECKING:
    from undust.datasets.image_folder import DataReport
    from undust.datasets.videos import Video

MAX_LISTED = 20  # lines of each list
FOUND_BROKEN = 1  # exit code

app = typer.Typer(help="Check or encode a data set.")


@app.command(hidden=True, context_settings={"ignore_unknown_options": True})
def emoji(options: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """The former command that built the data set of the built-in model."""
    raise UndustError(
        "data emoji is now a script in undust's repository: python examples/emoji_set.py "
        + " ".join(options or ["--out DIR"])
    )


@app.command()
def check(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Folder of pictures, of tars or of Parquet files; such a file; or a pattern of "
            "names: shards/{000..015}.tar.",
        ),
    ],
) -> None:
    """Report the numbers, sizes and captions of pictures, and unused and broken files."""
    from undust.datasets import films, image_folder
    from undust.datasets.samples import pictures
    from undust.datasets.videos import Video

    found = films.scan(folder)
    videos = [sample for sample in found.samples if isinstance(sample, Video)]
    others = [sample for sample in found.samples if not isinstance(sample, Video)]
    with console.counted("pictures", "reading pictures") as observe:
        report = image_folder.examine(replace(found, samples=others), observe, films.fault)
    facts = {
        "pictures": f"{report.pictures}{_splits(report)}",
        "groups": report.groups,
        "sizes": _sizes(report),
    }
    if not report.captions:
        facts["captions"] = f"0 of {pictures(report.pictures)}"
    console.facts({"data": found.kind} | (facts if others or not videos else {}))
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
    if others or not videos:
        for sentence in _on_captions(report):
            console.line(sentence)
    if videos:
        report.broken += _on_videos(videos)
    for what, count in report.conversions.items():
        console.line(f"{count} with {what}")
    for sentence in found.counts():
        console.line(sentence)
    for what, names in found.lists():
        _list(names, what)
    _list(report.broken, "broken")
    if report.broken or found.blank:
        raise typer.Exit(FOUND_BROKEN)


@app.command()
def encode(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.toml", help="Recipe of a diffusion model, TOML.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the encoded data.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe. Repeatable."),
    ] = None,
) -> None:
    """Encode the pictures of a recipe, and captions by a finished text encoder, for many runs."""
    from undust.training import kinds
    from undust.training.encode import encode as encode_data

    config = kinds.read(recipe, changes or (), console.note)
    console.summary(f"reading {config.data.folder}")
    sets = [part for change in changes or () for part in ("--set", change)]
    again = ["undust", "data", "encode", str(recipe), "--out", str(out), *sets]
    try:
        with (
            console.counted("views", "encoding pictures") as observe,
            console.counted("captions", "encoding captions") as observe_captions,
        ):
            made = encode_data(config, out, observe, observe_captions)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; continue with: {shlex.join(again)}") from None
    for sentence in made.notes:
        console.note(sentence)
    captions = f" and {made.captions} captions" if made.captions else ""
    console.summary(f"encoded {made.views} views of {made.pictures} pictures{captions}")
    console.line(out)
    use = ["undust", "train", str(recipe), *sets, "--set", f"data.folder={out}"]
    console.summary(f"train on it: {shlex.join(use)}")


def _on_captions(report: DataReport) -> Iterator[str]:
    """The notes and errors of training on these captions with a recipe's defaults."""
    from undust.conditioning import tokenizer as tokenizers
    from undust.datasets.samples import captions_in
    from undust.training.captions import (
        CaptionSampler,
        CaptionsConfig,
        check_captions,
        too_long,
    )

    samples = [sample for sample in report.samples if sample.split == "train"]
    if not samples:
        yield "no picture to train on: all are held out, or none can be read"
        return
    config = CaptionsConfig()
    try:
        yield from check_captions(config, samples, hint="")
    except UndustError as error:
        yield str(error)
        return
    captions = [captions_in(sample, config.fields) for sample in samples]
    texts = CaptionSampler(config, captions).all_texts()
    yield from too_long(config, captions, tokenizers.train(texts, config.vocabulary, config.length))


def _on_videos(videos: Sequence[Video]) -> list[str]:
    """Tells what videos there are; an error for each that cannot be read."""
    from undust.datasets import image_folder
    from undust.datasets.films import need_package
    from undust.datasets.samples import Contents
    from undust.datasets.videos import Video

    found = Contents(samples=[*videos])
    use = 'kind = "film" trains on them'
    try:
        need_package(found)
    except UndustError as error:
        console.line(f"videos: {len(videos)}, not read; {use}; {error}")
        return []
    with console.counted("videos", "reading videos") as observe:
        report = image_folder.examine(found, observe)
    lengths = [sample.header.frames for sample in report.samples if isinstance(sample, Video)]
    if lengths:
        frames = f"{min(lengths)}–{max(lengths)} frames"
        count = f"{len(lengths)}{_splits(report)}"
        console.line(f"videos: {count}, {_sizes(report)}, {frames}; {use}")
    return report.broken


def _splits(report: DataReport) -> str:
    parts = ", ".join(f"{count} {split}" for split, count in sorted(report.splits.items()))
    return f" ({parts})" if set(report.splits) - {"train"} else ""


def _sizes(report: DataReport) -> str:
    return _largest(Counter({f"{w}x{h}": n for (w, h), n in report.sizes.items()}))


def _largest(counts: Counter[str]) -> str:
    most = ", ".join(f"{name} ({count})" for name, count in counts.most_common(MAX_LISTED))
    return f"{most}, …" if len(counts) > MAX_LISTED else most


def _list(names: Sequence[str], what: str) -> None:
    if not names:
        return
    console.line(f"{len(names)} {what}:")
    for name in names[:MAX_LISTED]:
        typer.echo(f"  {console.clean(name)}")
    if len(names) > MAX_LISTED:
        typer.echo(f"  and {len(names) - MAX_LISTED} more")
