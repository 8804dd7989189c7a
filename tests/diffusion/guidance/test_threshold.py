from __future__ import annotations

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from undust.diffusion.guidance import ClassifierFree, DynamicThreshold
from undust.errors import UndustError


def test_without_a_limit_it_is_nothing_to_the_bit(bent):
    guided = ClassifierFree(bent.branch(1), bent.branch(2), 5.0)
    free = DynamicThreshold(guided, 0.9, math.inf)
    assert torch.equal(free(bent.x, bent.sigma), guided(bent.x, bent.sigma))
    assert bent.calls == [6, 6]


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995])
def test_it_agrees_with_diffusers(bent, percentile: float):
    """At Imagen's limit of 1, picture by picture."""
    guided = ClassifierFree(bent.branch(1), bent.branch(2), 9.0)
    ours = DynamicThreshold(guided, percentile)(bent.x, bent.sigma)
    scheduler = DDIMScheduler(
        thresholding=True, dynamic_thresholding_ratio=percentile, sample_max_value=1e9
    )
    theirs = scheduler._threshold_sample(guided(bent.x, bent.sigma))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_is_in_range_stays(world):
    estimate = world.branch(1)(world.x, world.sigma)
    wide = DynamicThreshold(world.branch(1), 1.0, estimate.abs().max().item())
    torch.testing.assert_close(wide(world.x, world.sigma), estimate)


def test_nothing_is_out_of_range_after_it(world):
    guided = ClassifierFree(world.branch(1), world.branch(2), 20.0)
    answer = DynamicThreshold(guided, 0.9, 2.5)(world.x, world.sigma)
    assert answer.abs().max() <= 2.5 + 1e-12


def test_settings_that_make_no_sense(bent):
    for percentile in (0.0, 1.1, math.nan):
        with pytest.raises(UndustError, match="threshold: the percentile"):
            DynamicThreshold(bent.branch(1), percentile)
    for limit in (0.0, -1.0, math.nan):
        with pytest.raises(UndustError, match="threshold: the limit"):
            DynamicThreshold(bent.branch(1), 0.9, limit)
