"""Scaled and rotated latents, and their pictures."""

from __future__ import annotations

import math

import pytest
import torch

from undust.training import equivariance
from undust.training.data import SampleOrder
from undust.training.equivariance import UNCHANGED, Transformation


@pytest.mark.parametrize("turns", range(4))
def test_a_turn_is_exact(turns: int):
    z, x = torch.randn(2, 4, 6, 8), torch.randn(2, 3, 12, 16)
    small, large = Transformation(1.0, turns)(z, x)
    for found, given in ((small, z), (large, x)):
        for _ in range(turns):  # a quarter turn to the left: the last column becomes the first row
            given = given.flip(3).transpose(2, 3)
        assert torch.equal(found, given)


def test_both_are_scaled_alike():
    """A linear ramp stays one: the middles of the smaller pixels lie on it, away from the edges."""
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    small, large = Transformation(0.5, 0)(ramp[..., ::2, ::2] + 0.5, ramp)
    assert small.shape[-2:] == (8, 8)
    assert large.shape[-2:] == (16, 16)
    torch.testing.assert_close(small[0, 0, 0, 2:-2], 4 * torch.arange(2.0, 6.0) + 1.5)
    torch.testing.assert_close(large[0, 0, 0, 2:-2], 2 * torch.arange(2.0, 14.0) + 0.5)


def test_sides_are_whole_latent_pixels():
    z, x = torch.randn(1, 2, 3, 5), torch.randn(1, 3, 24, 40)
    small, large = Transformation(0.3, 0)(z, x)
    assert (small.shape[-2:], large.shape[-2:]) == ((1, 2), (8, 16))


def test_drawn_in_the_share_of_steps_with_the_published_scales():
    order = SampleOrder([[k] for k in range(50)], seed=1)
    steps = [equivariance.drawn(order.batch(step, 4), 0.3) for step in range(600)]
    found = [each for each in steps if each != UNCHANGED]
    assert abs(len(found) / 600 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 600)
    assert all(0.25 <= each.scale < 1 for each in found)
    assert abs(sum(each.scale for each in found) / len(found) - 0.625) < 0.06
    assert {each.turns for each in found} == {0, 1, 2, 3}
    assert steps == [equivariance.drawn(order.batch(step, 4), 0.3) for step in range(600)]
    assert equivariance.drawn(order.batch(0, 4), 0.0) == UNCHANGED
