"""`undust schedules` and `undust schedules fit`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undust.cli import console
from undust.cli.loading import opened_model
from undust.cli.options import Model, request_options
from undust.errors import UndustError

if TYPE_CHECKING:
    from undust.generation.schedule_fitting import Choice

# Prompts without a data set, in turn for the search, its validation and the test.
WORDS = (
    *("a cat", "a red car", "a house", "a smiling face", "a tree", "a bird", "a cup of coffee"),
    *("a heart", "a dog", "a blue ball", "the sun", "a rocket", "a flower", "a fish", "an apple"),
    *("a hat", "a horse", "a yellow bus", "a castle", "a crying face", "a mushroom", "a snail"),
    *("a slice of pizza", "a star", "a rabbit", "a green book", "the moon", "an airplane"),
    *("a rose", "a whale", "a banana", "a shoe", "a lion", "a train", "a bridge", "an angry face"),
    *("a palm tree", "a butterfly", "a glass of milk", "a key", "a bear", "a purple flag"),
    *(
        "a mountain",
        "a sailing boat",
        "a pumpkin",
        "a turtle",
        "a loaf of bread",
        "a pair of glasses",
    ),
)
PICTURES = 32  # of each of the three parts, with different seeds
SHOWN = 3  # published schedules compared with

app = typer.Typer(invoke_without_command=True)


@app.callback()
def schedules(context: typer.Context) -> None:
    """List the noise schedules, or fit one to a model."""
    if context.invoked_subcommand:
        return
    from undust.diffusion.schedules import SCHEDULES

    console.table(
        ["name", "description"],
        [
            [name, (inspect.getdoc(schedule) or "").partition("\n")[0]]
            for name, schedule in sorted(SCHEDULES.items())
        ],
    )


@app.command()
@request_options("sampler", "guidance")
def fit(
    model: Model,
    steps: Annotated[int, typer.Option(metavar="N", min=1, max=100, help="Number of steps.")],
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Data set for prompts.  [default: common words]"),
    ] = None,
    calls: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Budget of the search: network calls per picture. Ctrl-C ends it early.",
        ),
    ] = 1000,
    json: Annotated[bool, typer.Option("--json", help="Print JSON with all errors.")] = False,
    **options: Any,
) -> None:
    """Find the noise levels for a number of steps that minimise the error to a model's flow.

    A third of the prompts are for the search, a third decide when it stops and whether a published
    schedule is better, and a third, with other seeds, are for the reported errors. The output is
    for `undust generate --schedule`: a list of levels, or the name of a published schedule.
    """
    from undust.generation import schedule_fitting

    loaded = opened_model(model)
    parts = [WORDS[k::3] for k in range(3)] if data is None else _captions(data)
    searched, held_out, fresh = (
        [
            recipe
            for k in range(PICTURES)
            for recipe in loaded.recipes(
                prompts[k % len(prompts)],
                steps=steps,
                seed=part * PICTURES + k,
                **options,
            )
        ]
        for part, prompts in enumerate(parts)
    )
    found = _search(schedule_fitting.fit_schedule(loaded, searched, held_out, calls=calls), calls)
    listed = found.name or ",".join(f"{sigma:.6g}" for sigma in found.sigmas[:-1].tolist())
    measure = schedule_fitting.Measure(loaded, fresh)
    known = schedule_fitting.published(loaded.process, steps)
    own = measure.distances(found.sigmas)
    errors = {name: measure.distances(sigmas) for name, sigmas in known.items()}
    nearer = {name: float((own < error).double().mean()) for name, error in errors.items()}
    measured = {"fitted": own, **errors} if not found.name else errors
    means = {name: float(error.mean()) for name, error in measured.items()}
    spread = {name: float(error.std()) for name, error in measured.items()}
    if json:
        result = {"schedule": listed, "calls": found.calls, "errors": means, "deviations": spread}
        typer.echo(console.as_json({**result, "nearer": nearer}))
        return
    console.line(listed)
    own_name = found.name or "fitted"
    others = sorted(errors.keys() - {own_name}, key=means.__getitem__)[:SHOWN]
    console.summary(
        f"distance from the flow's end, mean ± deviation of {PICTURES} pictures, other prompts and "
        f"seeds: {own_name} {means[own_name]:.3f} ± {spread[own_name]:.3f}"
    )
    for name in others:
        console.summary(
            f"{name} {means[name]:.3f} ± {spread[name]:.3f}; {own_name} is nearer on "
            f"{nearer[name]:.0%} of the pictures"
        )
    if found.name:
        console.summary(f"no schedule better than the published {found.name} was found")


def _captions(data: Path) -> list[list[str]]:
    """The data set's captions, in turn for the search, its validation and the test."""
    from undust.conditioning.prompt import escape
    from undust.datasets import image_folder

    samples = [sample for sample in image_folder.read(data) if sample.captions]
    captions = [escape(next(iter(sample.captions.values()))) for sample in samples]
    parts = [captions[k::3] for k in range(3)]
    if not all(parts):
        raise UndustError(f"{data} has too few captions to fit a schedule; at least 3 are needed")
    return [part[:: max(1, len(part) // PICTURES)] for part in parts]


def _search(choices: Iterator[Choice], calls: int) -> Choice:
    """The last choice; with Ctrl-C the best so far."""
    best: Choice | None = None
    with console.Progress(calls, "calls") as progress:
        try:
            for best in choices:
                progress.update(best.calls, f"error {best.error:.4g}")
        except KeyboardInterrupt:
            if best is None:
                raise
    assert best is not None
    return best
