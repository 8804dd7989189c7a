"""Part 10, the one idea: a state gets less wrong step by step, in the plane and in the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from undust.diffusion.noise import PictureNoise
from undust.diffusion.process import VE
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.samplers.registry import SamplerStep
from undust.diffusion.schedules import SCHEDULES
from undust.explain.effect import Effect
from undust.explain.figures import Figure, Frames, Line, LineChart, TextTable
from undust.explain.mixture import MODES
from undust.explain.plane import ESTIMATE, Plane
from undust.explain.result import PartResult
from undust.explain.setup import Sampled, Setup
from undust.pictures import grid

PROCESS = VE(0.02, 10.0)  # of the plane
POINTS = 64  # of each seed
STEPS = 20
SHOWN, PATHS = 12, 5  # points of the first seed, and those of them whose whole paths are shown
TRAIL = 4  # steps behind a point
FEWEST = 3  # steps of the model, to have some way
EVERY = 2  # steps between two pictures
REACH, SIDE, ARROWS = 2.9, 300, 15  # half a picture's width in the plane, pixels, a side's arrows
EXACT, SPOILT = "ode", "mean"  # ways through the plane
# Equations of seed 001 and their places in the code, below `undust`.
EQUATIONS = (
    ("dx = f(t)·x dt + g(t) dw", "diffusion.process.base:Process.f, Process.g"),
    ("dx = [f(t)·x − ½·g(t)²·∇log q(x)] dt", "explain.mixture:GaussianMixture.score"),
    ("L = γ(t)·‖S(x, t) − ∇log q(x)‖²", "diffusion.denoiser:NetworkDenoiser.loss"),
    ("dx = [f(t)·x − ½·g(t)²·S(x, t)] dt", "diffusion.prediction:PREDICTIONS['score']"),
    ("dx = [f(t)·x − ½·g(t)²·(μ − x)/σ²] dt", "diffusion.denoiser:NetworkDenoiser"),
    ("dx = (x − μ)/σ dσ", "diffusion.samplers.euler:euler_step"),
)

Field = Callable[[Tensor, Tensor | float], Tensor]
"""(x [B, ..., 2], σ) -> the estimate of x0."""


class Way:
    """Points on their way through the plane.

    levels: σ [steps + 1]; x: [steps + 1, seeds, points, 2]; estimates: of x0, at all x but the last
    [steps, seeds, points, 2].
    """

    def __init__(self, start: Tensor, levels: Tensor, steps: Sequence[SamplerStep]) -> None:
        self.levels = levels
        self.x = torch.stack([start, *(step.x for step in steps)])
        self.estimates = torch.stack([step.x0 for step in steps])

    @property
    def distances(self) -> Tensor:
        """To the nearest mode, the means over each seed's points [steps + 1, seeds]."""
        return MODES.nearest(self.x).mean(-1)

    @property
    def scaled(self) -> Tensor:
        """x/√(1 + σ²), of variance 1 at every level, as pictures show it."""
        return self.x / (1 + self.levels**2).sqrt()[:, None, None, None]


def show(setup: Setup) -> PartResult:
    """The part of this model."""
    say = setup.say("score")
    ways = all_ways(setup.seeds)
    exact, spoilt, one = ways[EXACT], ways[SPOILT], ways["one"]
    path = setup.sample(sampler="euler", steps=max(FEWEST, setup.steps))
    figures: list[Figure] = [
        Frames(
            say("field"),
            [say("at", sigma=f"{exact.levels[k]:.2g}") for k in range(0, STEPS + 1, EVERY)],
            [
                grid([state(each, k) for each in (exact, ways["sde"])], 2, gap=8)
                for k in range(0, STEPS + 1, EVERY)
            ],
            say("field_alt"),
            "slider",
            start=STEPS // EVERY // 2,
            note=say("field_note"),
        ),
        Frames(
            say("ends"),
            [say(f"way_{name}") for name in ways],
            [grid([ends(way)], 1, gap=8) for way in ways.values()],
            say("ends_alt"),
            "buttons",
            note=say("ends_note"),
        ),
        plane_chart(setup, ways),
        model_chart(setup, path),
        equations(setup),
    ]
    found = model_path(setup, path)
    middle = len(found["to_end"]) // 2
    effects = [
        Effect("one_step", say("one_step"), _last(one.distances), _last(exact.distances), "higher"),
        Effect(
            "no_field", say("no_field"), _last(spoilt.distances), _last(exact.distances), "higher"
        ),
        Effect(
            "estimate",
            say("estimate"),
            found["to_end"][middle].tolist(),
            _first(found["to_end"]),
            "lower",
            3,
        ),
        Effect("left", say("left_effect"), _last(found["left"]), _first(found["left"]), "lower", 3),
    ]
    falls = (found["to_end"].diff(dim=0) < 0).double().mean(0)
    return PartResult(
        figures,
        effects,
        {
            "steps_that_bring_the_estimate_nearer_to_its_end": falls.tolist(),
            "distance_of_exact_samples_to_their_mode": MODES.deviation * (torch.pi / 2) ** 0.5,
            **{f"distances_{name}": way.distances.tolist() for name, way in ways.items()},
            **{f"model_{name}": values.tolist() for name, values in found.items()},
        },
    )


def all_ways(seeds: Sequence[int]) -> dict[str, Way]:
    """By name: with the exact score, without and with noise, in one step, and to the mean alone."""
    return {
        EXACT: travel(seeds, "euler", STEPS, MODES.denoise),
        "sde": travel(seeds, "euler-ancestral", STEPS, MODES.denoise),
        "one": travel(seeds, "euler", 1, MODES.denoise),
        SPOILT: travel(seeds, "euler", STEPS, mean_only),
    }


def mean_only(x: Tensor, _sigma: Tensor | float) -> Tensor:
    """The estimate for σ → ∞ at every level: the mean of everything."""
    return MODES.mean.expand_as(x)


def travel(seeds: Sequence[int], sampler: str, steps: int, field: Field) -> Way:
    """From noise along a field, by one of our samplers; the same start for the same seed."""
    levels = SCHEDULES["karras"](PROCESS, steps)
    noise = PictureNoise(seeds, (POINTS, 2))
    start = PROCESS.start(noise.start().double(), levels[0])
    return Way(start, levels, [*SAMPLERS[sampler](field, start, levels, noise)])


def state(way: Way, step: int) -> Image.Image:
    """The plane at a step's level: density, score, and the first points with their paths."""
    level = float(way.levels[step])
    scale = (1 + level**2) ** 0.5
    plane = Plane(REACH, SIDE)
    plane.density(lambda x: MODES.log_density(x * scale, level))
    places = plane.grid(ARROWS)
    score = MODES.score(places * scale, level) * (MODES.deviation**2 + level**2) ** 0.5
    size = score.norm(dim=-1, keepdim=True)
    longest = 0.9 * 2 * REACH / ARROWS
    for place, along in zip(places, longest * score / size * torch.tanh(size / 2), strict=True):
        plane.arrow(place, along)
    for points in way.scaled[max(0, step - TRAIL) : step + 1, 0, :SHOWN].transpose(0, 1):
        plane.path(points)
    if step < len(way.estimates):
        x, estimates = way.scaled[step, 0, :SHOWN], way.estimates[step, 0, :SHOWN] / scale
        for start, end in zip(x, estimates, strict=True):
            plane.path(torch.stack([start, end]), ESTIMATE, 1)
        plane.points(estimates, 2.5, ESTIMATE)
    plane.points(way.scaled[step, 0, :SHOWN], 4)
    return plane.image


def ends(way: Way) -> Image.Image:
    """The clean density, the ends of all points, and the whole paths of the first ones."""
    plane = Plane(REACH, SIDE * 3 // 2)
    plane.density(partial(MODES.log_density, sigma=0.0))
    for points in way.scaled[:, 0, :PATHS].transpose(0, 1):
        plane.path(points)
    plane.points(way.scaled[-1].flatten(0, 1), 2)
    plane.points(way.scaled[0, 0, :PATHS], 3.5, (255, 255, 255))
    plane.crosses(MODES.means)
    return plane.image


def model_path(setup: Setup, path: Sampled) -> dict[str, Tensor]:
    """Of each seed on the model's own way, in units of the latents' deviation.

    to_end: from each step's estimate of x0 to the final latent [steps, seeds]; left: the noise
    that the model sees in x, x − x0, at each step but the first [steps − 1, seeds]; noise: that
    divided by σ, without a unit.
    """
    unit = setup.latents.std().item()
    estimates = torch.stack([step.x0 for step in path.steps]).double()
    x = torch.stack([step.x for step in path.steps[:-1]]).double()
    levels = torch.tensor([step.sigma for step in path.steps[:-1]], dtype=torch.float64)
    left = _rms(x - estimates[1:])
    return {
        "to_end": _rms(estimates - path.latents.double()) / unit,
        "left": left / unit,
        "noise": left / levels[:, None],
    }


def plane_chart(setup: Setup, ways: dict[str, Way]) -> LineChart:
    """The distance to the nearest mode over the steps."""
    say = setup.say("score")
    lines = [
        _line(say(f"way_{name}"), range(len(way.distances)), way.distances)
        for name, way in ways.items()
    ]
    return LineChart(
        say("distance"),
        say("step"),
        say("distance_unit"),
        lines,
        log_y=True,
        note=say("distance_note"),
    )


def model_chart(setup: Setup, path: Sampled) -> LineChart:
    """The model's estimate and the noise that it sees, over the steps."""
    say = setup.say("score")
    found = model_path(setup, path)
    lines = [
        _line(say(name), range(len(path.steps) - len(values), len(path.steps)), values)
        for name, values in found.items()
    ]
    return LineChart(
        say("model"), say("step"), say("model_unit"), lines, log_y=True, note=say("model_note")
    )


def equations(setup: Setup) -> TextTable:
    """Each equation of seed 001, its place in the picture and in the code."""
    say = setup.say("score")
    return TextTable(
        say("equations"),
        [say("number"), say("equation"), say("in_picture"), say("in_code")],
        [
            [f"({number})", formula, say(f"equation_{number}"), code.replace(":", ": ")]
            for number, (formula, code) in enumerate(EQUATIONS, 1)
        ],
        say("equations_note"),
    )


def _line(name: str, x: Sequence[int], values: Tensor) -> Line:
    """Means [steps] of values [steps, seeds] with their deviation."""
    return Line(name, [*map(float, x)], values.mean(1).tolist(), values.std(1).tolist())


def _rms(x: Tensor) -> Tensor:
    """Root mean squares [steps, seeds] of [steps, seeds, ...]."""
    return x.square().flatten(2).mean(2).sqrt()


def _first(values: Tensor) -> list[float]:
    return values[0].tolist()


def _last(values: Tensor) -> list[float]:
    return values[-1].tolist()
