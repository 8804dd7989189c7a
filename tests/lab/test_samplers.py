"""Errors against network calls: what is counted, and what the errors are the distance to."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest

from convergence import GAUSSIAN
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError
from undust.lab import samplers
from undust.lab.model_under_test import ModelUnderTest
from undust.lab.samplers import Curve, SamplerRun, calls, compare, flow_curve, sampler_curve
from undust.pipeline import LatentDiffusion, load

SPREAD = GAUSSIAN.deviations.item() ** 2


@pytest.mark.parametrize(
    ("name", "first", "each"),
    [("euler", 1, 1), ("heun", 1, 2), ("dpm-solver-3", 1, 3), ("dpmpp-sde", 1, 2), ("unipc", 1, 1)],
)
def test_calls_are_counted(tiny_model, name: str, first: int, each: int):
    """Heun's method asks twice a step, but once where 0 is reached; and the like."""
    subject = ModelUnderTest(load(tiny_model), 1)
    for steps in (1, 4):
        sigmas = subject.levels(steps)
        expected = first + each * (steps - 1)
        assert calls(name, sigmas) == expected
        assert subject.run(name, sigmas)[1] == expected


def test_the_longest_run_within_a_budget():
    runs = tuple(SamplerRun(calls=n, steps=n, error=1 / n) for n in (2, 5, 9))
    curve = Curve(name="euler", against="flow", runs=runs)
    assert [curve.within(n) for n in (1, 2, 8, 50)] == [None, runs[0], runs[1], runs[2]]


def test_the_error_of_euler_on_a_gaussian(gaussian: LatentDiffusion):
    """Each step scales x by k + σ'/σ·(1 − k), k = s²/(s² + σ²); the flow by √(s²/(s² + σ²))."""
    subject = ModelUnderTest(gaussian, 2)
    levels = partial(SCHEDULES["exponential"], gaussian.process)
    end, _ = subject.run("dpmpp-3m", subject.levels(300))
    curve = flow_curve(subject, "euler", levels, end, "exponential")
    assert curve.name == "exponential"
    assert [(run.calls, run.steps) for run in curve.runs] == [(n, n) for n in samplers.BUDGETS]
    size = subject.path.start().square().mean((1, 2, 3)).sqrt().mean().item()
    for run in curve.runs:
        sigmas = levels(run.calls).tolist()
        factor = math.prod(
            SPREAD / (SPREAD + high**2) + low / high * high**2 / (SPREAD + high**2)
            for high, low in pairwise(sigmas)
        )
        true = math.sqrt(SPREAD / (SPREAD + sigmas[0] ** 2))
        expected = size * math.sqrt(1 + sigmas[0] ** 2) * abs(factor - true)
        assert run.error == pytest.approx(expected, rel=0.01, abs=1e-3)


def test_noise_is_judged_on_its_path(gaussian: LatentDiffusion, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(samplers, "BUDGETS", (9, 50))
    monkeypatch.setattr(samplers, "PATH_STEPS", 200)
    subject = ModelUnderTest(gaussian, 2)
    levels = partial(SCHEDULES["karras"], gaussian.process)
    end, _ = subject.run("unipc", subject.levels(20))
    few, many = sampler_curve(subject, "dpmpp-2m-sde", levels, end).runs
    assert (few.calls, many.calls) == (9, 50)
    assert many.error < few.error / 2
    assert sampler_curve(subject, "restart", levels, end) == Curve(name="restart", against=None)


def test_bounds_of_an_adaptive_sampler_fall_until_the_calls_are_spent(gaussian: LatentDiffusion):
    subject = ModelUnderTest(gaussian, 1)
    levels = partial(SCHEDULES["karras"], gaussian.process)
    end, _ = subject.run("unipc", subject.levels(200))
    curve = sampler_curve(subject, "dpm-adaptive", levels, end)
    asked = [run.calls for run in curve.runs]
    assert asked == sorted(set(asked)) and asked[-1] <= max(samplers.BUDGETS)
    assert curve.runs[-1].error < curve.runs[0].error
    assert all(run.steps is None for run in curve.runs)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few runs, and all of them short."""
    for name, value in {"BUDGETS": (3,), "FLOW_STEPS": 6, "PATH_STEPS": 4}.items():
        monkeypatch.setattr(samplers, name, value)


@pytest.mark.usefixtures("short")
def test_all_samplers_and_schedules_are_compared(gaussian: LatentDiffusion):
    seen: list[tuple[int, int]] = []
    found = compare(
        gaussian,
        schedule="trailing",
        pictures=1,
        observe=lambda done, total: seen.append((done, total)),
    )
    total = len(SAMPLERS) + len(SCHEDULES)
    assert seen == [(k + 1, total) for k in range(total)]
    assert {curve.name for curve in found.samplers} == SAMPLERS.keys()
    assert {curve.name for curve in found.schedules} == SCHEDULES.keys()
    assert (found.schedule, found.sampler) == ("trailing", "deis")
    for curve in found.samplers:
        sampler = SAMPLERS[curve.name]
        path = "path" if sampler.strong is not None else None
        assert curve.against == (path if sampler.stochastic else "flow")
        assert all(run.calls <= 3 for run in curve.runs)
    rows = found.rows(found.samplers)
    assert len(rows) == len(SAMPLERS)
    assert rows[-1][1:] == ["no unique end", ""]
    shown = [float(row[2]) for row in rows if row[2]]
    assert shown == sorted(shown)
    assert found.columns("sampler") == ["sampler", "error to the end of", "3 calls>"]
    assert "6 steps of dpmpp-3m" in found.note


@pytest.mark.usefixtures("short")
def test_what_cannot_be_compared(gaussian: LatentDiffusion):
    with pytest.raises(UndustError, match="unknown schedule 'karas'; did you mean 'karras'"):
        compare(gaussian, schedule="karas")
    with pytest.raises(UndustError, match="prompts: at least 1 is needed, not 0"):
        compare(gaussian, pictures=0)
