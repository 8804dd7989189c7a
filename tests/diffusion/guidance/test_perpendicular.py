from __future__ import annotations

import math

import pytest
import torch

from undust.diffusion.guidance import ClassifierFree, Perpendicular
from undust.errors import UndustError


def test_without_weight_it_is_guidance_away_from_no_prompt_to_the_bit(bent):
    positive, negative, empty = (bent.branch(seed) for seed in (1, 2, 3))
    ours = Perpendicular(positive, negative, empty, 4.0, 0.0)
    assert torch.equal(
        ours(bent.x, bent.sigma), ClassifierFree(positive, empty, 4.0)(bent.x, bent.sigma)
    )
    one = Perpendicular(positive, negative, empty, 1.0, 0.0)
    assert torch.equal(one(bent.x, bent.sigma), positive(bent.x, bent.sigma))
    assert bent.calls == [6, 6, 3, 3]


def test_of_gaussians_it_is_the_one_with_the_perpendicular_mean(world):
    """Armandpour et al. 2023: e + w·(p − e − λ·(n − e)⊥); differences of estimates are those of
    the means times σ²/(s² + σ²), so that right angles stay."""
    p, n, e = (world.mean(seed) for seed in (1, 2, 3))
    ours = Perpendicular(world.asked(p), world.asked(n), world.asked(e), 4.0, 0.8)
    answer = ours(world.x, world.sigma)
    assert world.calls == [9]
    towards, off = (p - e).flatten(), (n - e).flatten()
    perpendicular = off - (off @ towards) / (towards @ towards) * towards
    mean = e.flatten() + 4.0 * (towards - 0.8 * perpendicular)
    torch.testing.assert_close(answer, world.exact(mean.reshape(e.shape)))


def test_a_negative_prompt_that_says_the_same_takes_nothing_away(world):
    positive, empty = world.branch(1), world.branch(3)
    ours = Perpendicular(positive, world.branch(1), empty, 4.0, 1.0)
    plain = ClassifierFree(positive, empty, 4.0)
    torch.testing.assert_close(ours(world.x, world.sigma), plain(world.x, world.sigma))


def test_a_prompt_that_says_nothing_has_no_direction(world):
    ours = Perpendicular(world.branch(3), world.branch(2), world.branch(3), 4.0, 1.0)
    assert ours(world.x, world.sigma).isfinite().all()


def test_settings_that_make_no_sense(bent):
    parts = [bent.branch(seed) for seed in (1, 2, 3)]
    with pytest.raises(UndustError, match="perp-neg: nan is not a finite weight"):
        Perpendicular(*parts, 2.0, math.nan)
    with pytest.raises(UndustError, match="inf is not a finite scale"):
        Perpendicular(*parts, math.inf)
