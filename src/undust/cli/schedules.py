"""`undust schedules` and `undust schedules fit`."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undust.cli import show
from undust.cli.options import Guidance, Model, Sampler
from undust.errors import UndustError

if TYPE_CHECKING:
    from undust.diffusion.fitting import Fit
    from undust.generation.recipe import Recipe
    from undust.model import LatentDiffusion

# What a schedule is fitted to where no data set says what the model paints.
WORDS = (
    *("a cat", "a red car", "a house", "a smiling face", "a tree", "a bird", "a cup of coffee"),
    *("a heart", "a dog", "a blue ball", "the sun", "a rocket", "a flower", "a fish", "an apple"),
    "a hat",
)
SHOWN = 3  # published schedules to compare with

app = typer.Typer(invoke_without_command=True)


@app.callback()
def schedules(context: typer.Context) -> None:
    """List the schedules, which levels of noise the steps visit, or fit one to a model."""
    if context.invoked_subcommand:
        return
    from undust.diffusion.schedules import SCHEDULES

    show.table(
        ["name", "what it is"],
        [
            [name, (inspect.getdoc(schedule) or "").partition("\n")[0]]
            for name, schedule in sorted(SCHEDULES.items())
        ],
    )


@app.command()
def fit(
    model: Model,
    steps: Annotated[int, typer.Option(metavar="N", min=1, max=100, help="How many steps.")],
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A data set, whose captions are better than our words."),
    ] = None,
    sampler: Sampler = None,
    guidance: Guidance = None,
    seconds: Annotated[
        float, typer.Option(metavar="S", min=0, help="How long to search; Ctrl-C ends it too.")
    ] = 60,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, with all errors.")] = False,
) -> None:
    """Find the levels of noise at which so many steps of a model go least astray.

    Half of the prompts are for the search, the other half for the figures. What is printed is what
    `undust generate --schedule` takes.
    """
    from undust.generation import fitted
    from undust.model import load

    loaded = load(model)
    prompts = WORDS if data is None else _captions(data)
    recipes = [
        recipe
        for seed, prompt in enumerate(prompts)
        for recipe in loaded.recipes(
            prompt, steps=steps, sampler=sampler, guidance=guidance, seed=seed
        )
    ]
    found = _search(loaded, recipes[::2], seconds)
    listed = ",".join(f"{sigma:.6g}" for sigma in found.sigmas[:-1].tolist())
    candidates = {"fitted": found.sigmas, **fitted.published(loaded.process, steps)}
    errors = fitted.errors(loaded, recipes[1::2], candidates)
    if json:
        typer.echo(show.as_json({"schedule": listed, "errors": errors}))
        return
    show.line(listed)
    own = errors.pop("fitted")
    best = sorted(errors, key=errors.__getitem__)[:SHOWN]
    others = ", ".join(f"{name} {errors[name]:.3g}" for name in best)
    show.summary(f"distance from the flow's end, other prompts: fitted {own:.3g}; {others}")


def _captions(data: Path) -> list[str]:
    """In turn a training caption and a held-out one, or another training one if none are."""
    from undust.conditioning.prompt import escape
    from undust.datasets import image_folder

    samples = [sample for sample in image_folder.read(data) if sample.captions]
    train = [sample for sample in samples if sample.split == "train"]
    test = [sample for sample in samples if sample.split == "test"] or train[1::2]
    count = min(8, len(train), len(test))
    if count == 0:
        raise UndustError(f"{data} has too few captions to fit a schedule to; two are needed")
    train, test = train[:: len(train) // count], test[:: len(test) // count]
    chosen = [sample for pair in zip(train, test, strict=False) for sample in pair][: 2 * count]
    return [escape(next(iter(sample.captions.values()))) for sample in chosen]


def _search(model: LatentDiffusion, batch: Sequence[Recipe], seconds: float) -> Fit:
    """The best schedule that is found until nothing is better, the time is up, or Ctrl-C."""
    from undust.generation import fitted

    began = time.monotonic()
    best: Fit | None = None
    with show.Progress(math.ceil(seconds), "s") as progress:
        try:
            for best in fitted.fit_schedule(model, batch):
                passed = time.monotonic() - began
                if passed >= seconds:
                    break
                progress.update(int(passed), f"error {best.error:.4g}")
        except KeyboardInterrupt:
            if best is None:
                raise
    assert best is not None
    return best
