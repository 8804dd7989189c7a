from __future__ import annotations

import math

import pytest
import torch

from undust.diffusion.guidance import ClassifierFree, ConditionedDenoiser, ScaleTable
from undust.errors import UndustError


def test_scale_one_is_no_guidance_to_the_bit(bent):
    positive, negative = bent.branch(1), bent.branch(2)
    guided = ClassifierFree(positive, negative, 1.0)(bent.x, bent.sigma)
    assert bent.calls == [3]
    assert torch.equal(guided, positive(bent.x, bent.sigma))


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 3.0, 7.5])
def test_guidance_is_the_published_mixture_in_one_call(bent, scale: float):
    """Ho & Salimans 2022, eq. 6 on the noise: ε' = (1 + w)·ε_cond − w·ε_uncond, w = scale − 1."""
    parts = bent.branch(1), bent.branch(2)
    guided = ClassifierFree(*parts, scale)(bent.x, bent.sigma)
    assert bent.calls == [6]
    positive, negative = ((bent.x - part(bent.x, bent.sigma)) / 1.7 for part in parts)
    epsilon = scale * positive - (scale - 1) * negative
    torch.testing.assert_close(guided, bent.x - 1.7 * epsilon)


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_guided_gaussians_are_the_gaussian_beyond(world, scale: float):
    """Of two Gaussians of one width: that of the mean n + scale·(p − n)."""
    p, n = world.mean(1), world.mean(2)
    guided = ClassifierFree(world.asked(p), world.asked(n), scale)(world.x, world.sigma)
    torch.testing.assert_close(guided, world.exact(n + scale * (p - n)))


def test_like_conditions_are_no_guidance(bent):
    guided = ClassifierFree(bent.branch(1), bent.branch(1), 7.5)(bent.x, bent.sigma)
    torch.testing.assert_close(guided, bent.branch(1)(bent.x, bent.sigma))


def test_a_scale_can_be_a_function_of_sigma(bent):
    """Neutral where it is 1: there the negative prompt is not even asked."""
    parts = bent.branch(1), bent.branch(2)
    guided = ClassifierFree(*parts, lambda level: 3.0 if level < 1 else 1.0)
    assert torch.equal(guided(bent.x, bent.sigma), parts[0](bent.x, bent.sigma))
    assert bent.calls == [3, 3]
    low = torch.full_like(bent.sigma, 0.5)
    assert torch.equal(guided(bent.x, low), ClassifierFree(*parts, 3.0)(bent.x, low))


def test_what_cannot_be_guided(bent):
    parts = bent.branch(1), bent.branch(2)
    for scale in (math.nan, math.inf):
        with pytest.raises(UndustError, match=r"guidance: (nan|inf) is not a finite scale"):
            ClassifierFree(*parts, scale)
        with pytest.raises(UndustError, match=r"guidance: (nan|inf) is not a finite scale"):
            ClassifierFree(*parts, lambda level, scale=scale: scale)(bent.x, bent.sigma)
    short = ConditionedDenoiser(bent.denoise, type(parts[1].cond)(parts[1].cond.value[:2]))
    with pytest.raises(UndustError, match="guidance: 2 conditions for 3 pictures"):
        ClassifierFree(parts[0], short, 2.0)(bent.x, bent.sigma)
    levels = torch.tensor([1.0, 1.0, 2.0])
    varied = ClassifierFree(*parts, ScaleTable(torch.tensor([2.0]), torch.tensor([3.0, 0.0])))
    with pytest.raises(UndustError, match="needs one σ for the whole batch"):
        varied(bent.x, levels)
    assert ClassifierFree(*parts, 2.0)(bent.x, levels).isfinite().all()
