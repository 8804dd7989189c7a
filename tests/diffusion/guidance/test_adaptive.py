from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from undust.diffusion.guidance import AdaptiveGuidance, ClassifierFree, GuidedRun
from undust.errors import UndustError

LEVELS = torch.logspace(1, -2, 12).tolist()


def adaptive(world, threshold: float, scale: float = 5.0) -> AdaptiveGuidance:
    parts = world.branch(1), world.branch(2)
    return AdaptiveGuidance(ClassifierFree(*parts, scale), *parts, scale, threshold)


def published(world, threshold: float) -> tuple[list[Tensor], list[int]]:
    """Each picture's estimates by the paper's loop, and its number of guided calls."""
    p, n = world.mean(1), world.mean(2)
    guided, done = [0] * len(world.x), [False] * len(world.x)
    estimates: list[Tensor] = []
    for level in LEVELS:
        world.sigma = torch.full_like(world.sigma, level)
        positive, negative = world.exact(p), world.exact(n)
        found = positive.clone()
        for k, (a, b) in enumerate(zip(positive.flatten(1), negative.flatten(1), strict=True)):
            if not done[k]:
                found[k] = negative[k] + 5.0 * (positive[k] - negative[k])
                guided[k] += 1
                done[k] = bool(a @ b / (a.norm() * b.norm()) > threshold)
        estimates.append(found)
    return estimates, guided


def test_each_picture_is_guided_until_its_estimates_agree(world):
    world.x = world.x * torch.tensor([0.2, 1.0, 4.0])[:, None, None, None]
    expected, guided = published(world, 0.9)
    assert len({*guided}) == 3 and max(guided) < len(LEVELS)
    world.calls.clear()
    run = GuidedRun(adaptive(world, 0.9))
    for level, estimate in zip(LEVELS, expected, strict=True):
        torch.testing.assert_close(run(world.x, torch.full_like(world.sigma, level)), estimate)
    assert world.calls == [6] * max(guided) + [3] * (len(LEVELS) - max(guided))


def test_a_picture_does_not_depend_on_its_batch(world):
    together, apart = GuidedRun(adaptive(world, 0.9)), []
    for row in world.x.split(1):
        alone = type(world)(row, world.sigma[:1])
        apart.append(GuidedRun(adaptive(alone, 0.9)))
    for level in LEVELS:
        sigma = torch.full_like(world.sigma, level)
        estimates = [run(row, sigma[:1]) for run, row in zip(apart, world.x.split(1), strict=True)]
        torch.testing.assert_close(together(world.x, sigma), torch.cat(estimates))


@pytest.mark.parametrize(("threshold", "scale"), [(1.0, 5.0), (0.5, 1.0)])
def test_neutral_settings_are_nothing_to_the_bit(bent, threshold: float, scale: float):
    guidance = adaptive(bent, threshold, scale)
    for level in (5.0, 0.01):
        sigma = torch.full((3,), level)
        assert torch.equal(guidance(bent.x, sigma), guidance.guided(bent.x, sigma))
    assert {*bent.calls} == {3 if scale == 1 else 6}


def test_another_run_remembers_nothing(world):
    guidance = adaptive(world, -1.0)  # the first call is guided, no other one
    p, guided = world.exact(world.mean(1)), guidance.guided(world.x, world.sigma)
    for _ in range(2):
        run = GuidedRun(guidance)
        torch.testing.assert_close(run(world.x, world.sigma), guided)
        torch.testing.assert_close(run(world.x, world.sigma), p)


def test_without_a_run_it_is_refused(bent):
    with pytest.raises(UndustError, match="memory of one run"):
        adaptive(bent, 0.9)(bent.x, bent.sigma)


def test_thresholds_that_are_none(bent):
    for threshold in (1.1, -2.0, math.nan):
        with pytest.raises(UndustError, match=r"adaptive: .* is outside -1 … 1"):
            adaptive(bent, threshold)
