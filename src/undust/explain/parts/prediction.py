"""Part 7, the prediction: ε, x0 and v as targets, and the same error made in each of them.

The model at hand is measured; stored runs say what training makes of the choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from undust.diffusion.noise import PictureNoise
from undust.diffusion.prediction import PREDICTIONS
from undust.diffusion.process import Process
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import sigmas
from undust.explain import prediction_runs
from undust.explain.effect import Effect
from undust.explain.figures import Figure, Frames, Line, LineChart, TextTable
from undust.explain.prediction_runs import PredictionRuns
from undust.explain.result import PartResult
from undust.explain.setup import Setup
from undust.generation.guided import guided

NAMES = {"epsilon": "ε", "sample": "x0", "v_prediction": "v"}
TIMES = 11
HIGHEST = 100.0  # σ; some processes go on to infinity
GRID = 4001  # levels between which a time step is looked for
SIZE = 0.25  # of an output's error, root mean square
# Of each: its target, x0 from it, and the factors of its error in x0 and in (x − x0)/σ.
ALGEBRA = {
    "epsilon": ("ε", "x − σ·ε", "σ", "1"),
    "sample": ("x0", "x0", "1", "1/σ"),
    "v_prediction": (
        "(ε − σ·x0)/√(1 + σ²)",
        "x/(1 + σ²) − σ·v/√(1 + σ²)",
        "σ/√(1 + σ²)",
        "1/√(1 + σ²)",
    ),
}


@dataclass(frozen=True)
class Targets:
    """Measurements on real latents at some levels, each by the name of a prediction.

    t: time steps of the network [T]; sigma: [T]; variance, mean: of the target over each picture's
    numbers [T, N]; error: mean square of the model's estimate, in the target's unit [T, N].
    """

    t: Tensor
    sigma: Tensor
    mean: Mapping[str, Tensor]
    variance: Mapping[str, Tensor]
    error: Mapping[str, Tensor]

    def unexplained(self, name: str) -> Tensor:
        """The error as a share of the target's variance over all pictures [T, N]."""
        within = self.variance[name].mean(1) + self.mean[name].var(1, correction=0)
        return self.error[name] / within[:, None]


def show(setup: Setup) -> PartResult:
    """The part of this model."""
    say = setup.say("prediction")
    found = measured(setup)
    ends = {name: with_errors(setup, name) for name in (None, *NAMES)}
    figures: list[Figure] = [
        spoilt_pictures(setup, ends),
        TextTable(
            say("algebra"),
            [say("output"), say("target"), say("to_x0"), say("in_x0"), say("in_direction")],
            [[NAMES[name], *cells] for name, cells in ALGEBRA.items()],
            say("algebra_note"),
        ),
        variances(setup, found),
        _over_time(setup, "errors", {n: found.error[n].sqrt() for n in NAMES}, found, log_y=True),
        _over_time(setup, "unexplained", {n: found.unexplained(n) for n in NAMES}, found),
        amplification(setup, found),
    ]
    measures = effects(setup, found, ends)
    runs = PredictionRuns.read()
    figures += prediction_runs.figures(runs, NAMES, say)
    measures += prediction_runs.effects(runs, say)
    return PartResult(
        figures,
        measures,
        {
            "own_prediction": setup.model.prediction,
            "t": found.t.tolist(),
            "sigma": found.sigma.tolist(),
            "unexplained": {name: found.unexplained(name).mean(1).tolist() for name in NAMES},
            "moved": {name: _rms(ends[name] - ends[None]) for name in NAMES},
            "noise_left": {name or "none": noise_left(setup, each) for name, each in ends.items()},
            "mean_of_target": {name: each.mean(1).tolist() for name, each in found.mean.items()},
        },
    )


def even_times(process: Process, count: int) -> tuple[Tensor, Tensor]:
    """Time steps [count], nearly even, of a network of this process, and their σ up to HIGHEST."""
    ends = torch.tensor([process.sigma_min, min(process.sigma_max, HIGHEST)], dtype=torch.float64)
    low, high = ends.log().tolist()
    grid = torch.linspace(low, high, GRID, dtype=torch.float64).exp()
    steps = process.timestep(grid)
    wanted = torch.linspace(steps[0].item(), steps[-1].item(), count, dtype=torch.float64)
    places = torch.searchsorted(steps, wanted).clamp(max=GRID - 1)
    return steps[places], grid[places]


def measured(setup: Setup) -> Targets:
    """The targets and the model's errors on the latents of the real pictures."""
    z = setup.latents
    t, levels = even_times(setup.model.process, TIMES)
    found = {what: {name: list[Tensor]() for name in NAMES} for what in ("mean", "var", "error")}
    for number, level in enumerate(levels):
        noise, sigma = setup.noise(z, number), level.to(z)
        wrong = (setup.estimate(z + sigma * noise, level.item()) - z).square().flatten(1).mean(1)
        for name in NAMES:
            target = PREDICTIONS[name].target(z, noise, sigma).flatten(1)
            found["mean"][name].append(target.mean(1))
            found["var"][name].append(target.var(1))
            found["error"][name].append(wrong / PREDICTIONS[name].scale(sigma) ** 2)
    rows = {what: {n: torch.stack(each) for n, each in own.items()} for what, own in found.items()}
    return Targets(t, levels, rows["mean"], rows["var"], rows["error"])


@torch.inference_mode()
def with_errors(setup: Setup, name: str | None) -> Tensor:
    """Final latents [B, C, h, w] by Euler's method if each output of that kind has an error.

    New unit normal numbers times SIZE are added to each output of the guided denoiser; None: none.
    """
    model, batch = setup.model, setup.recipes(sampler="euler")
    first = batch[0]
    levels = sigmas(first.schedule, model.process, first.steps)
    noise = PictureNoise(setup.seeds, model.latent_shape(first.width, first.height))
    denoise = guided(model, batch, levels)

    def spoilt(x: Tensor, sigma: Tensor) -> Tensor:
        x0 = denoise(x, sigma)
        if name is None:
            return x0
        factor = PREDICTIONS[name].scale(sigma.clamp(max=HIGHEST)) * SIZE
        return x0 + factor.reshape(-1, 1, 1, 1) * noise(sigma, sigma).to(x0)

    start = model.process.start(noise.start(), levels[0])
    return [*SAMPLERS["euler"](spoilt, start, levels, noise)][-1].x


def noise_left(setup: Setup, latents: Tensor) -> list[float]:
    """The noise that the model finds in each latent when it looks for a deviation of SIZE."""
    return _rms(latents - setup.estimate(latents, SIZE, prompts=setup.prompts))


def effects(setup: Setup, found: Targets, ends: Mapping[str | None, Tensor]) -> list[Effect]:
    """x0 in place of ε: as a target, for this model, and with an error of one size in each."""
    say = setup.say("prediction")

    def compared(name: str, values: Mapping[str, list[float]], digits: int = 2) -> Effect:
        return Effect(name, say(name), values["sample"], values["epsilon"], "higher", digits)

    return [
        compared(
            "off_one",
            {name: (found.variance[name] - 1).abs().mean(0).tolist() for name in NAMES},
        ),
        compared(
            "unexplained_share", {name: found.unexplained(name).mean(0).tolist() for name in NAMES}
        ),
        compared("moved", {name: _rms(ends[name] - ends[None]) for name in NAMES}),
        compared("noise_left", {name: noise_left(setup, ends[name]) for name in NAMES}, 3),
    ]


def spoilt_pictures(setup: Setup, ends: Mapping[str | None, Tensor]) -> Frames:
    """The pictures of each kind of error."""
    say = setup.say("prediction")
    with torch.inference_mode():
        rows = [setup.row(setup.model.decode(each)) for each in ends.values()]
    labels = [say("exact"), *(say("error_in", output=each) for each in NAMES.values())]
    return Frames(
        say("spoilt"),
        labels,
        rows,
        say("spoilt_alt"),
        "buttons",
        note=say("spoilt_note", size=SIZE, own=setup.model.prediction),
    )


def variances(setup: Setup, found: Targets) -> LineChart:
    """Of each target, measured and as theory has it."""
    say = setup.say("prediction")
    z = setup.latents
    own = z.flatten(1).var(1).mean()
    theory = {
        "epsilon": torch.ones_like(found.sigma),
        "sample": own * torch.ones_like(found.sigma),
        "v_prediction": (1 + found.sigma**2 * own) / (1 + found.sigma**2),
    }
    lines = _lines(found.t, found.variance) + [
        Line(NAMES[name], found.t.tolist(), each.tolist(), markers=False)
        for name, each in theory.items()
    ]
    return LineChart(say("variances"), say("t"), say("variance"), lines, note=say("variances_note"))


def amplification(setup: Setup, found: Targets) -> LineChart:
    """The error of x0 for an error of 1 in each output."""
    say = setup.say("prediction")
    lines = [
        Line(short, found.t.tolist(), PREDICTIONS[name].scale(found.sigma).abs().tolist())
        for name, short in NAMES.items()
    ]
    return LineChart(
        say("amplification"),
        say("t"),
        say("factor"),
        lines,
        log_y=True,
        note=say("amplification_note"),
    )


def _over_time(
    setup: Setup, key: str, values: Mapping[str, Tensor], found: Targets, *, log_y: bool = False
) -> LineChart:
    """Values [T, N] of each prediction over the time step."""
    say = setup.say("prediction")
    return LineChart(
        say(key),
        say("t"),
        say(f"{key}_unit"),
        _lines(found.t, values),
        log_y=log_y,
        note=say(f"{key}_note"),
    )


def _lines(t: Tensor, values: Mapping[str, Tensor]) -> list[Line]:
    """A line for each prediction: the mean of pictures [T, N] and their deviation."""
    return [
        Line(NAMES[name], t.tolist(), each.mean(1).tolist(), each.std(1).tolist())
        for name, each in values.items()
    ]


def _rms(x: Tensor) -> list[float]:
    """Root mean square of each entry of a batch."""
    return x.square().flatten(1).mean(1).sqrt().tolist()
