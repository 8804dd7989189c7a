from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.guiders import (
    AutoGuidance,
    PerturbedAttentionGuidance,
    SmoothedEnergyGuidance,
)

from undust.diffusion.guidance import ClassifierFree, DifferenceGuidance
from undust.errors import UndustError


def test_scale_zero_adds_nothing_to_the_bit(bent):
    guided = ClassifierFree(bent.branch(1), bent.branch(2), 3.0)
    away = DifferenceGuidance(guided, bent.branch(1), bent.branch(3), 0.0)
    assert torch.equal(away(bent.x, bent.sigma), guided(bent.x, bent.sigma))
    assert bent.calls == [6, 6]


def test_all_branches_of_one_network_are_asked_in_one_call(bent):
    """The conditional estimate is in both formulas, and is asked once."""
    positive, negative, worse = (bent.branch(seed) for seed in (1, 2, 3))
    DifferenceGuidance(ClassifierFree(positive, negative, 3.0), positive, worse, 2.0)(
        bent.x, bent.sigma
    )
    assert bent.calls == [9]


def test_away_from_a_worse_gaussian(world):
    """Of one width: the mean g + scale·(b − w)."""
    g, b, w = (world.mean(seed) for seed in (1, 2, 3))
    away = DifferenceGuidance(world.asked(g), world.asked(b), world.asked(w), 1.5)
    torch.testing.assert_close(away(world.x, world.sigma), world.exact(g + 1.5 * (b - w)))


def test_away_from_another_network_takes_a_call_of_each(bent):
    """Autoguidance, w = scale + 1: x0 = w·good + (1 − w)·bad."""
    other = type(bent)(bent.x, bent.sigma)
    good, bad = bent.branch(1), other.branch(1)
    away = DifferenceGuidance(good, good, bad, 1.25)(bent.x, bent.sigma)
    assert (bent.calls, other.calls) == ([3], [3])
    expected = 2.25 * good(bent.x, bent.sigma) - 1.25 * bad(bent.x, bent.sigma)
    torch.testing.assert_close(away, expected)


BLOCKS: dict[str, Any] = {
    "perturbed": lambda scale, guidance: PerturbedAttentionGuidance(
        guidance, scale, 0.0, 1.0, perturbed_guidance_layers=0
    ),
    "smoothed": lambda scale, guidance: SmoothedEnergyGuidance(
        guidance, scale, seg_guidance_start=0.0, seg_guidance_stop=1.0, seg_guidance_layers=0
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(("scale", "guidance"), [(3.0, 4.0), (0.5, 7.5), (0.0, 4.0)])
def test_the_formula_agrees_with_diffusers(bent, name: str, scale: float, guidance: float):
    """Theirs is written for ε."""
    parts = [bent.branch(seed) for seed in (1, 2, 3)]
    away = DifferenceGuidance(ClassifierFree(*parts[:2], guidance), parts[0], parts[2], scale)
    ours = away(bent.x, bent.sigma)
    epsilon = [(bent.x - part(bent.x, bent.sigma)) / 1.7 for part in parts]
    theirs = BLOCKS[name](scale, guidance).forward(*epsilon).pred
    torch.testing.assert_close((bent.x - ours) / 1.7, theirs, rtol=1e-5, atol=1e-5)


def test_autoguidance_agrees_with_diffusers(bent):
    good, bad = bent.branch(1), bent.branch(3)
    ours = DifferenceGuidance(good, good, bad, 1.5)(bent.x, bent.sigma)
    epsilon = [(bent.x - part(bent.x, bent.sigma)) / 1.7 for part in (good, bad)]
    theirs = AutoGuidance(2.5, auto_guidance_layers=0, dropout=1.0).forward(*epsilon).pred
    torch.testing.assert_close((bent.x - ours) / 1.7, theirs, rtol=1e-5, atol=1e-5)


def test_scales_that_make_no_sense(bent):
    for scale in (math.nan, -math.inf):
        with pytest.raises(UndustError, match="is not a finite scale"):
            DifferenceGuidance(bent.branch(1), bent.branch(1), bent.branch(2), scale)
