"""The arc between two draws of noise."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from undust.diffusion.interpolation import slerp
from undust.diffusion.noise import normal

A, B = (normal(seed, (0, 0, 0), (3, 4, 8, 8)) for seed in (1, 2))


def test_the_ends_are_the_ends():
    torch.testing.assert_close(slerp(A, B, 0.0), A)
    torch.testing.assert_close(slerp(A, B, 1.0), B)


@given(st.floats(0, 1))
def test_noise_stays_noise(part: float):
    """The length lies between those of the ends, where a straight line falls to 1/√2 of it."""
    lengths = slerp(A, B, part).flatten(1).norm(dim=1)
    ends = torch.stack([A.flatten(1).norm(dim=1), B.flatten(1).norm(dim=1)])
    assert bool((lengths > 0.97 * ends.amin(0)).all() and (lengths < 1.03 * ends.amax(0)).all())


def test_equal_parts_are_equal_angles():
    a, b = (
        end.double() / end.double().flatten(1).norm(dim=1)[:, None, None, None] for end in (A, B)
    )
    flat = [slerp(a, b, k / 4).flatten(1) for k in range(5)]
    angles = torch.stack([(a * b).sum(1).clamp(-1, 1).acos() for a, b in pairwise(flat)])
    torch.testing.assert_close(angles, angles.mean(0).expand_as(angles), rtol=1e-9, atol=0)


def test_a_quarter_turn():
    x, y = torch.eye(2, dtype=torch.float64)[:, None]
    expected = torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]], dtype=torch.float64)
    torch.testing.assert_close(slerp(x, y, 1 / 3), expected)


def test_each_picture_goes_its_own_part_and_its_own_arc():
    part = torch.tensor([0.2, 0.5, 0.9])
    together = slerp(A, B, part)
    for k in range(3):
        torch.testing.assert_close(
            slerp(A[k : k + 1], B[k : k + 1], float(part[k])), together[k : k + 1]
        )


@given(st.floats(0, 1))
def test_parallel_noise_is_no_trouble(part: float):
    assert slerp(A, A, part).isfinite().all()
    torch.testing.assert_close(slerp(A, 3 * A, part), A * (1 + 2 * part))
    assert slerp(torch.zeros_like(A), A, part).isfinite().all()
