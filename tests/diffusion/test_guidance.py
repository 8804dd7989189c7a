from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from undust.diffusion.guidance import ClassifierFree
from undust.diffusion.noise import normal
from undust.errors import UndustError


@dataclass(frozen=True)
class Offsets:
    """A condition in earnest: what to add, [B, D]."""

    value: Tensor

    def __len__(self) -> int:
        return len(self.value)

    def concat(self, other: Offsets) -> Offsets:
        return Offsets(torch.cat([self.value, other.value]))


X, SIGMA = normal(0, (0, 0, 0), (3, 5)), torch.tensor([0.5, 2.0, 9.0])
POSITIVE, NEGATIVE = (Offsets(normal(seed, (0, 0, 0), (3, 5))) for seed in (1, 2))


class Counted:
    """A denoiser that notes how many pictures each call brought."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Offsets, /) -> Tensor:
        self.calls.append(len(x))
        assert len(x) == len(sigma) == len(cond)
        return torch.tanh(x + cond.value) / (1 + sigma[:, None])


def test_scale_one_is_no_guidance_to_the_bit():
    denoise = Counted()
    guided = ClassifierFree(denoise, POSITIVE, NEGATIVE, 1.0)(X, SIGMA)
    assert denoise.calls == [3]
    assert torch.equal(guided, denoise(X, SIGMA, POSITIVE))


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 3.0, 7.5])
def test_guidance_is_the_published_mixture_in_one_call(scale: float):
    """Ho & Salimans 2022, eq. 6 on the noise: ε' = (1 + w)·ε_cond − w·ε_uncond, w = scale − 1."""
    denoise = Counted()
    guided = ClassifierFree(denoise, POSITIVE, NEGATIVE, scale)(X, SIGMA)
    assert denoise.calls == [6]
    positive, negative = (
        (X - denoise(X, SIGMA, cond)) / SIGMA[:, None] for cond in (POSITIVE, NEGATIVE)
    )
    epsilon = scale * positive - (scale - 1) * negative
    torch.testing.assert_close(guided, X - SIGMA[:, None] * epsilon)


def test_like_conditions_are_no_guidance():
    denoise = Counted()
    guided = ClassifierFree(denoise, POSITIVE, POSITIVE, 7.5)(X, SIGMA)
    torch.testing.assert_close(guided, denoise(X, SIGMA, POSITIVE))


def test_what_cannot_be_guided():
    for scale in (math.nan, math.inf):
        with pytest.raises(UndustError, match=r"guidance: (nan|inf) is not a finite scale"):
            ClassifierFree(Counted(), POSITIVE, NEGATIVE, scale)
    short = Offsets(NEGATIVE.value[:2])
    with pytest.raises(UndustError, match="guidance: 3 conditions but 2 negative ones"):
        ClassifierFree(Counted(), POSITIVE, short, 2.0)
