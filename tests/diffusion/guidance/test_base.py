"""What holds for all guidances: they stack in any order, and each leaf is asked once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undust.diffusion.guidance import (
    ClassifierFree,
    Composable,
    ConditionedDenoiser,
    DifferenceGuidance,
    DynamicThreshold,
    GuidedRun,
    Interval,
    Perpendicular,
    Projected,
    PromptSchedule,
    Regional,
    Rescaled,
    ScaleTable,
)
from undust.diffusion.samplers import SAMPLERS
from undust.errors import UndustError
from undust.networks.conditioning import CallOptions

SIGMAS = torch.tensor([20.0, 5.0, 1.0, 0.2, 0.0], dtype=torch.float64)
LEFT = torch.linspace(0, 1, 5).expand(4, 5)

# Each makes a denoiser of one that it finds; `leaf` gives others of the same network.
WRAPPERS: dict[str, Any] = {
    "classifier-free": lambda d, leaf: ClassifierFree(d, leaf(2), 7.0),
    "as the negative": lambda d, leaf: ClassifierFree(leaf(1), d, 1.5),
    "table": lambda d, leaf: ClassifierFree(
        d, leaf(2), ScaleTable(torch.tensor([1.0, 3.0, 9.0, 0.0]), SIGMAS)
    ),
    "projected": lambda d, leaf: Projected(d, leaf(2), 12.0, 0.0, 2.0, -0.5),
    "perpendicular": lambda d, leaf: Perpendicular(d, leaf(2), leaf(3), 5.0),
    "away": lambda d, leaf: DifferenceGuidance(d, leaf(1), leaf(4), 3.0),
    "rescaled": lambda d, leaf: Rescaled(d, leaf(1)),
    "interval": lambda d, leaf: Interval(d, leaf(1), 0.3, 6.0),
    "schedule": lambda d, leaf: PromptSchedule(d, [(2.0, leaf(5))]),
    "threshold": lambda d, leaf: DynamicThreshold(d, 0.9),
    "composable": lambda d, leaf: Composable(leaf(2), [(d, 1.0), (leaf(3), -0.5)]),
    "regional": lambda d, leaf: Regional([d, leaf(5)], torch.stack([LEFT, 1 - LEFT])),
}
NEUTRAL: dict[str, Any] = {
    "classifier-free": lambda d, leaf: ClassifierFree(d, leaf(2), 1.0),
    "table": lambda d, leaf: ClassifierFree(d, leaf(2), ScaleTable(torch.ones(4), SIGMAS)),
    "projected": lambda d, leaf: Projected(d, leaf(2), 1.0, 0.0, 2.0, -0.5),
    "perpendicular": lambda d, leaf: Perpendicular(d, leaf(2), leaf(3), 1.0, 0.0),
    "away": lambda d, leaf: DifferenceGuidance(d, leaf(1), leaf(4), 0.0),
    "rescaled": lambda d, leaf: Rescaled(d, leaf(1), 0.0),
    "interval": lambda d, leaf: Interval(d, leaf(1)),
    "schedule": lambda d, leaf: PromptSchedule(d, [(0.0, leaf(5))]),
    "threshold": lambda d, leaf: DynamicThreshold(d, 0.9, float("inf")),
    "composable": lambda d, leaf: Composable(leaf(2), [(d, 1.0), (leaf(3), 0.0)]),
    "regional": lambda d, leaf: Regional(
        [d, leaf(5)], torch.stack([torch.ones(4, 5), torch.zeros(4, 5)])
    ),
}


def leaves(world: Any) -> Any:
    made: dict[int, Any] = {}
    return lambda seed: made.setdefault(seed, world.branch(seed))


def stacked(world: Any, names: list[str], wrappers: dict[str, Any] = WRAPPERS) -> Any:
    leaf = leaves(world)
    denoise = leaf(1)
    for name in names:
        denoise = wrappers[name](denoise, leaf)
    return denoise


@given(st.lists(st.sampled_from(list(WRAPPERS)), max_size=5))
@settings(max_examples=25)
def test_they_stack_in_any_order(bent_worlds: Any, names: list[str]):
    world = bent_worlds()
    run = GuidedRun(stacked(world, names))
    *_, last = SAMPLERS["heun"](run, world.x, SIGMAS, lambda *_: world.x)
    assert last.x.shape == world.x.shape
    assert last.x.isfinite().all()
    assert len(world.calls) == 7  # two calls a step, one in the last: as without any guidance


@given(st.lists(st.sampled_from(list(NEUTRAL)), max_size=5))
@settings(max_examples=20)
def test_at_their_neutral_settings_they_are_not_there(bent_worlds: Any, names: list[str]):
    world = bent_worlds()
    guided = GuidedRun(stacked(world, names, NEUTRAL))
    plain = SAMPLERS["heun"](world.branch(1), world.x, SIGMAS, lambda *_: world.x)
    calls = world.calls
    for ours, theirs in zip(
        SAMPLERS["heun"](guided, world.x, SIGMAS, lambda *_: world.x), plain, strict=True
    ):
        assert torch.equal(ours.x, theirs.x)
        assert torch.equal(ours.x0, theirs.x0)
    assert calls == [3] * 14


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_one_around_another_is_not_there(bent, name: str):
    leaf = leaves(bent)
    inner = ClassifierFree(leaf(1), leaf(2), 4.0)
    around = NEUTRAL[name](inner, leaf)
    assert torch.equal(GuidedRun(around)(bent.x, bent.sigma), inner(bent.x, bent.sigma))
    assert bent.calls == [6, 6]


def test_a_denoiser_of_ones_own_is_asked_by_itself(bent):
    def own(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x / 2

    positive = bent.branch(1)
    answer = ClassifierFree(positive, own, 3.0)(bent.x, bent.sigma)
    assert bent.calls == [3]
    expected = bent.x / 2 + 3 * (positive(bent.x, bent.sigma) - bent.x / 2)
    assert torch.equal(answer, expected)


def test_runs_of_a_plain_denoiser_are_that_denoiser(bent):
    assert torch.equal(
        GuidedRun(bent.branch(1))(bent.x, bent.sigma), bent.branch(1)(bent.x, bent.sigma)
    )


def test_a_condition_for_other_pictures_is_refused(bent):
    cond = bent.branch(1).cond
    with pytest.raises(UndustError, match="3 conditions for 2 pictures"):
        GuidedRun(ConditionedDenoiser(bent.denoise, cond))(bent.x[:2], bent.sigma[:2])


def test_options_are_never_dropped(world: Any):
    """By a branch that has none."""
    plain = world.branch(1)
    told = ConditionedDenoiser(plain.denoise, plain.cond, CallOptions())
    for pair in ((plain, told), (told, plain)):
        with pytest.raises(UndustError, match="with and without options"):
            pair[0].concat(pair[1])
    assert told.concat(told).options == CallOptions()
    assert plain.concat(plain).options is None


def test_the_conditions_of_a_run_are_joined_once(bent):
    """A network may keep what it computes of them."""
    seen: list[Any] = []

    def network(x: torch.Tensor, _: torch.Tensor, cond: Any) -> torch.Tensor:
        seen.append(cond)
        return x

    one, other = (ConditionedDenoiser(network, bent.branch(k).cond) for k in (1, 2))
    run = GuidedRun(ClassifierFree(one, other, 3.0))
    for _ in range(2):
        run(bent.x, bent.sigma)
    assert seen[0] is seen[1] and len(seen[0]) == 2 * len(bent.x)
