from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from undust.diffusion.guidance import ClassifierFree, Interval
from undust.diffusion.samplers import SAMPLERS
from undust.errors import UndustError


def test_from_zero_to_infinity_it_is_nothing_to_the_bit(bent):
    guided = ClassifierFree(bent.branch(1), bent.branch(2), 5.0)
    everywhere = Interval(guided, guided.positive)
    assert torch.equal(everywhere(bent.x, bent.sigma), guided(bent.x, bent.sigma))
    assert bent.calls == [6, 6]


@pytest.mark.parametrize(("level", "inside"), [(5.1, 0), (5.0, 1), (1.0, 1), (0.3, 0), (0.2, 0)])
def test_it_ends_as_published(bent, level: float, inside: bool):
    """Low excluded, high included, in float32 as in float64."""
    guided = ClassifierFree(bent.branch(1), bent.branch(2), 5.0)
    sigma = torch.full((3,), level)
    answer = Interval(guided, guided.positive, 0.3, 5.0)(bent.x, sigma)
    assert bent.calls == [6 if inside else 3]
    assert torch.equal(answer, (guided if inside else guided.positive)(bent.x, sigma))


def test_the_flow_of_gaussians_bends_at_its_ends(world):
    """dx/dσ = (x − x0)/σ keeps (x − mean)/√(s² + σ²): towards p, then n + 4·(p − n), then p."""
    p, n = world.mean(1), world.mean(2)
    far = n + 4 * (p - n)
    guided = ClassifierFree(world.asked(p), world.asked(n), 4.0)
    ends = (10.0, 4.0, 1.0, 0.1)
    parts = [
        torch.logspace(math.log10(a), math.log10(b), 41, dtype=torch.float64)[:-1]
        for a, b in pairwise(ends)
    ]
    sigmas = torch.cat([*parts, torch.tensor([0.1], dtype=torch.float64)])
    x = world.x * 10
    *_, last = SAMPLERS["euler"](
        Interval(guided, guided.positive, 1.0, 4.0), x, _finer(sigmas, 5), lambda *_: x
    )
    for mean, (a, b) in zip((p, far, p), pairwise(ends), strict=True):
        x = mean + (x - mean) * math.sqrt((0.36 + b * b) / (0.36 + a * a))
    assert (last.x - x).abs().max() < 0.02 * x.abs().max()


def _finer(sigmas: torch.Tensor, times: int) -> torch.Tensor:
    """Steps between the steps, evenly in log σ, the given ones among them."""
    share = torch.arange(times, dtype=torch.float64) / times
    between = sigmas[:-1, None] * (sigmas[1:] / sigmas[:-1])[:, None] ** share
    return torch.cat([between.flatten(), sigmas[-1:]])


def test_intervals_that_are_none(bent):
    for low, high in [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (0.0, math.nan)]:
        with pytest.raises(UndustError, match=r"interval: .* is not valid"):
            Interval(bent.branch(1), bent.branch(1), low, high)
