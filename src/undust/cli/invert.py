"""`undust invert` and `undust likelihood`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undust.cli import console
from undust.cli.loading import opened_model
from undust.cli.options import BUILT_IN, ModelOption, request_options
from undust.cli.output import FOLDER, note_replaced, slug, try_writing_file
from undust.formats.files import make_folder

if TYPE_CHECKING:
    from torch import Tensor

    from undust.pipeline import LatentDiffusion


@request_options("schedule")
def invert(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="Picture file.")],
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="Description of the picture.")
    ] = "",
    model: ModelOption = BUILT_IN,
    steps: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Number of steps.")] = 20,
    guidance: Annotated[
        float, typer.Option(metavar="S", help="Guidance scale; inversion often fails above 1.")
    ] = 1.0,
    iterations: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=1000, help="Maximum per step; 1 is DDIM inversion."),
    ] = 30,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Output file, .safetensors.  [default: in undust-out]"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a line of JSON.")] = False,
    **options: Any,
) -> None:
    """Find the noise from which a model generates a picture.

    `undust generate --noise` starts from it: the same prompt reproduces the picture, another prompt
    gives another picture of the same layout. The error of the reproduction is measured at the
    picture's own size, in total, for the first stage alone and for the inversion alone.
    """
    out = out or FOLDER / f"{slug(picture.stem)}.safetensors"
    try_writing_file(out)
    from undust.evaluation.metrics import psnr
    from undust.formats import safetensors_file
    from undust.generation import inversion, loop
    from undust.pictures import resized

    loaded = opened_model(model)
    batch = loaded.recipes(
        prompt, steps=steps, sampler="euler", guidance=guidance, seed=0, **options
    )
    latents = _latents(loaded, [picture])
    note_replaced(out)
    last = step = None
    with console.Progress(2 * steps, "steps") as progress:
        for last in inversion.invert(loaded, batch, latents, iterations=iterations):
            progress.update(last.index + 1, "inversion")
        assert last is not None
        noise = inversion.noise(loaded, last)
        for step in loop.sample_batch(loaded, batch, noise):
            progress.update(steps + step.index + 1, "generation")
    assert step is not None
    given = _given(picture, loaded.size)
    size = given.shape[-1], given.shape[-2]
    whole, stage = loaded.decode(step.x), loaded.decode(latents)
    back, kept = resized(whole, size), resized(stage, size)
    measured = {
        "psnr": psnr(back, given).item(),
        "largest_difference": round((back - given).abs().max().item() * 127.5),
        "psnr_first_stage": psnr(kept, given).item(),
        "psnr_inversion": psnr(whole, stage).item(),
    }
    make_folder(out.parent)
    safetensors_file.save(out, {"noise": noise[0]})
    if json:
        finite = {name: value if math.isfinite(value) else None for name, value in measured.items()}
        variance = {"variance": noise.var().item()}
        typer.echo(console.as_json({"path": str(out), **finite, **variance}))
        return
    console.line(out)
    console.summary(
        f"the picture generated from it has a PSNR of {measured['psnr']:.1f} dB, at most "
        f"{measured['largest_difference']} of 255 off; the first stage alone "
        f"{measured['psnr_first_stage']:.1f} dB, the inversion alone "
        f"{measured['psnr_inversion']:.1f} dB"
    )
    again = ["generate", prompt, "--noise", out, "--sampler", "euler", "--steps", steps]
    again += ["--guidance", f"{guidance:g}"]
    again += ["--schedule", options["schedule"]] if "schedule" in options else []
    again += ["--model", model] * (model != BUILT_IN)
    console.summary("undust " + shlex.join(map(str, again)))


def likelihood(
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE", help="Picture files.")],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="Description of the pictures.")] = "",
    model: ModelOption = BUILT_IN,
    steps: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=1000, help="Number of steps, of four network calls each."
        ),
    ] = 30,
    probes: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=1000,
            help="Number of random vectors for the trace; with 1 the error is about 0.02 bits.",
        ),
    ] = 1,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the random vectors.")] = 0,
    json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each picture.")
    ] = False,
) -> None:
    """Measure the likelihood of pictures under a model, in bits per dimension of their latents.

    Lower is likelier. It is for comparisons of pictures, prompts and models, as the first stage is
    not included.
    """
    from undust.generation import inversion

    loaded = opened_model(model)
    rows: list[list[object]] = []
    with console.Progress(len(pictures), "pictures") as progress:
        for done, picture in enumerate(pictures, 1):
            bits = inversion.bits_per_dimension(
                loaded,
                loaded.recipes(prompt, guidance=1, seed=0),
                _latents(loaded, [picture]),
                steps=steps,
                probes=probes,
                seed=seed,
            ).item()
            if json:
                progress.line(console.as_json({"path": str(picture), "bits_per_dimension": bits}))
            rows.append([picture, f"{bits:.2f}"])
            progress.update(done, console.shorten(picture.name, 30))
    if not json:
        console.table(["picture", "bits per dimension>"], rows)


def _latents(model: LatentDiffusion, paths: Sequence[Path]) -> Tensor:
    """The pictures' latents [B, C, h, w], at the size that the model was trained on."""
    import torch

    from undust.pictures import from_image, read_image

    bytes_ = torch.stack([from_image(read_image(path), model.size) for path in paths])
    return model.encode(bytes_.float() / 127.5 - 1)


def _given(path: Path, size: tuple[int, int]) -> Tensor:
    """The picture [1, 3, H, W] in [-1, 1] at its own size, cropped to the ratio of `size`."""
    from undust.pictures import from_image, read_image

    image = read_image(path)
    scale = min(image.width / size[0], image.height / size[1])
    own = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return from_image(image, own)[None].float() / 127.5 - 1
