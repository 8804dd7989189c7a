"""`undust explain`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from undust.cli import console
from undust.cli.loading import opened_model
from undust.cli.options import BUILT_IN, Device, ModelOption, OutFolder, Precision, Vae
from undust.cli.output import FOLDER, check_out_folder, free_place
from undust.errors import UndustError

if TYPE_CHECKING:
    from undust.explain.explanation import ExplainedPart


def explain(
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PART", help="Parts by name.  [default: all]"),
    ] = None,
    model: ModelOption = BUILT_IN,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The prompt of all pictures.  [default: six of the built-in model]",
        ),
    ] = None,
    lang: Annotated[Literal["en", "ko"], typer.Option(help="Language of the texts.")] = "en",
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Real pictures to encode, up to 16.  [default: 16 emoji]"),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=2, max=64, help="Number of seeds.")] = 6,
    steps: Annotated[
        int, typer.Option(metavar="N", min=2, max=1000, help="Number of sampling steps.")
    ] = 10,
    guidance: Annotated[float, typer.Option(metavar="S", help="Guidance scale.")] = 4.0,
    vae: Vae = None,
    dtype: Precision = None,
    device: Device = None,
    out: OutFolder = None,
) -> None:
    """Show why each part of latent diffusion is there, by removing it.

    Writes one page, index.html, and for each part a picture and its numbers as JSON.
    """
    check_out_folder(out)
    if pictures is not None and not pictures.is_dir():
        raise UndustError(f"--pictures {pictures}: no such folder")
    from undust.explain import explain_model, write_explanation
    from undust.explain.explanation import check_parts
    from undust.explain.labels import can_draw

    check_parts(parts or ())
    if lang == "ko" and not can_draw("가"):
        console.note(
            "no Korean font here: the pictures of the parts have transcribed text (Debian's "
            "fonts-nanum has one); the page is not affected"
        )
    loaded = opened_model(model, dtype=dtype, device=device, vae=vae, engine="auto")
    began = time.monotonic()
    with console.counted("parts", "explaining") as observe:
        found = explain_model(
            loaded,
            parts or (),
            prompt=prompt,
            language=lang,
            pictures=pictures,
            seeds=seeds,
            steps=steps,
            guidance=guidance,
            observe=observe,
        )
    folder = out or free_place(FOLDER, "explain")
    write_explanation(folder, found)
    console.table(
        ["part", "claims>", "as claimed>", "opposite>", "unclear>", "seconds>"],
        [_row(part) for part in found.parts],
    )
    console.summary(
        f"{console.seconds(time.monotonic() - began)}: model {loaded.name} {loaded.hash}"
    )
    console.line(str(folder / "index.html"))


def _row(part: ExplainedPart) -> list[str]:
    """The verdicts of a part, counted."""
    verdicts = [effect.verdict for effect in part.result.effects if effect.claim]
    counted = [verdicts.count(each) for each in ("as claimed", "opposite", "unclear")]
    return [part.name, *map(str, [len(verdicts), *counted]), f"{part.seconds:.1f}"]
