"""The error of samplers and schedules on a model by number of network calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from undust.diffusion.fitting import distance
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError
from undust.lab.model_under_test import REFERENCE, Counted, ModelUnderTest, end_of
from undust.pipeline import LatentDiffusion

BUDGETS = (5, 8, 10, 15, 20, 30, 50)  # network calls
FLOW_STEPS = 1000  # of the reference run for the end of the flow
PATH_STEPS = 500  # of the reference run for the end of a path
BOUNDS = tuple(2.0**-k for k in range(1, 30))  # error bounds of adaptive samplers

Levels = Callable[[int], Tensor]
"""Number of steps -> σ of a schedule for the model's process."""


class SamplerRun(BaseModel):
    """One run of a sampler: number of denoiser calls, number of steps and error.

    steps: None for an adaptive sampler; error: root mean square over the latent of a picture, the
    mean over pictures.
    """

    model_config = ConfigDict(frozen=True)

    calls: int
    steps: int | None
    error: float


class Curve(BaseModel):
    """The runs of a sampler or a schedule, from short to long.

    against: the reference of the error: the end of the "flow", or for a sampler with Brownian noise
    its own end on that "path". None: there is no unique end, and so no error.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    against: Literal["flow", "path"] | None
    runs: tuple[SamplerRun, ...] = ()

    def within(self, calls: int) -> SamplerRun | None:
        """The longest run of no more calls."""
        fitting = [run for run in self.runs if run.calls <= calls]
        return max(fitting, key=lambda run: run.calls) if fitting else None


class Comparison(BaseModel):
    """All samplers with one schedule, one sampler with all schedules, and their settings.

    size: root mean square of the latents at the flow's end, for comparison with errors.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    model_hash: str
    pictures: int
    guidance: float
    size: float
    schedule: str
    sampler: str
    samplers: tuple[Curve, ...]
    schedules: tuple[Curve, ...]

    @property
    def note(self) -> str:
        """An explanation of the tables."""
        others = ", ".join(curve.name for curve in self.samplers if curve.against is None)
        return (
            f"Root mean square error of the latent, whose own root mean square is {self.size:.2g}: "
            f"the mean over {self.pictures} pictures of {self.model} {self.model_hash}, guidance "
            f"{self.guidance:g}, of the longest run within the number of network calls. The end of "
            f"the flow is that of {FLOW_STEPS} steps of {REFERENCE}; the end of a path that of "
            f"{PATH_STEPS} steps of the sampler itself on the same Brownian path. With the fresh "
            f"noise of {others} there is no unique end."
        )

    def columns(self, what: str) -> list[str]:
        """The columns of the table of samplers or schedules."""
        return [what, "error to the end of", *(f"{budget} calls>" for budget in BUDGETS)]

    def rows(self, curves: tuple[Curve, ...]) -> list[list[str]]:
        """A row for each curve, by error at 20 calls; curves without error come last."""

        def place(curve: Curve) -> tuple[bool, float, str]:
            run = curve.within(20)
            return curve.against is None, run.error if run else torch.inf, curve.name

        ends = {"flow": "the flow", "path": "its path", None: "no unique end"}
        return [
            [
                curve.name,
                ends[curve.against],
                *(f"{run.error:.2g}" if (run := curve.within(b)) else "" for b in BUDGETS),
            ]
            for curve in sorted(curves, key=place)
        ]


def compare(
    model: LatentDiffusion,
    *,
    schedule: str | None = None,
    pictures: int = 8,
    observe: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Runs every sampler, and the recipe's own with every schedule, within budgets of calls.

    schedule: of all samplers; None for the recipe's; pictures: as for `ModelUnderTest`; observe:
    called with the number of curves drawn and of all. Raises UndustError for an unknown schedule.
    """
    subject = ModelUnderTest(model, pictures)
    recipe = subject.recipes[0]
    schedule = schedule or recipe.schedule
    spaced = {name: partial(levels, model.process) for name, levels in SCHEDULES.items()}
    chosen = partial(SCHEDULES[schedule], model.process)
    end, _ = subject.run(REFERENCE, subject.levels(FLOW_STEPS))
    drawn = chain(
        (sampler_curve(subject, name, chosen, end) for name in sorted(SAMPLERS)),
        (flow_curve(subject, recipe.sampler, spaced[name], end, name) for name in sorted(spaced)),
    )
    curves: list[Curve] = []
    for curve in drawn:
        curves.append(curve)
        if observe:
            observe(len(curves), len(SAMPLERS) + len(SCHEDULES))
    return Comparison(
        **subject.settings,
        size=end.double().square().mean().sqrt().item(),
        schedule=schedule,
        sampler=recipe.sampler,
        samplers=tuple(curves[: len(SAMPLERS)]),
        schedules=tuple(curves[len(SAMPLERS) :]),
    )


def sampler_curve(subject: ModelUnderTest, name: str, levels: Levels, end: Tensor) -> Curve:
    """A sampler's errors against the flow's `end`, or against the end of its own path."""
    sampler = SAMPLERS[name]
    if sampler.adaptive:
        return Curve(name=name, against="flow", runs=_bounded(subject, name, levels, end))
    if not sampler.stochastic:
        return flow_curve(subject, name, levels, end, name)
    if sampler.strong is None:
        return Curve(name=name, against=None)
    end, _ = subject.run(name, subject.levels(PATH_STEPS))
    return Curve(name=name, against="path", runs=_within_budgets(subject, name, levels, end))


def flow_curve(
    subject: ModelUnderTest, sampler: str, levels: Levels, end: Tensor, name: str
) -> Curve:
    """The errors of a sampler without noise against the flow's end; name: of the curve."""
    return Curve(name=name, against="flow", runs=_within_budgets(subject, sampler, levels, end))


def _within_budgets(
    subject: ModelUnderTest, sampler: str, levels: Levels, end: Tensor
) -> tuple[SamplerRun, ...]:
    """The longest run within each budget."""
    longest: dict[int, tuple[int, Tensor]] = {}
    for steps, sigmas in _lists(levels):
        needed = calls(sampler, sigmas)
        longest |= {budget: (steps, sigmas) for budget in BUDGETS if needed <= budget}
    runs: list[SamplerRun] = []
    for steps, sigmas in dict(longest.values()).items():
        x, made = subject.run(sampler, sigmas)
        runs.append(SamplerRun(calls=made, steps=steps, error=distance(x, end)))
    return tuple(sorted(runs, key=lambda run: run.calls))


def _bounded(
    subject: ModelUnderTest, sampler: str, levels: Levels, end: Tensor
) -> tuple[SamplerRun, ...]:
    """Runs of an adaptive sampler with decreasing error bounds, up to the largest budget."""
    sigmas = levels(max(BUDGETS))
    runs: dict[int, SamplerRun] = {}
    for bound in BOUNDS:
        x, made = subject.run(sampler, sigmas, rtol=bound, atol=bound)
        if made > max(BUDGETS):
            break
        runs[made] = SamplerRun(calls=made, steps=None, error=distance(x, end))
    return tuple(runs.values())


def _lists(levels: Levels) -> Iterator[tuple[int, Tensor]]:
    """A schedule's σ for all numbers of steps up to the largest budget."""
    for steps in range(1, max(BUDGETS) + 1):
        try:
            yield steps, levels(steps)
        except UndustError:
            continue  # some schedules do not support all numbers of steps


def calls(sampler: str, sigmas: Tensor) -> int:
    """The number of denoiser calls of a sampler that is not adaptive, by a run on a constant."""
    one = torch.ones(1, 1, dtype=torch.float64)

    def like(x: Tensor, sigma: Tensor) -> Tensor:
        del x, sigma
        return one

    counted = Counted(like)
    end_of(sampler, counted, one, sigmas, like)
    return counted.calls
