"""Spherical interpolation of noise."""

from __future__ import annotations

import torch
from torch import Tensor

from undust.diffusion.noise import PictureNoise

PARALLEL = 1e-6  # sine of the angle below which the interpolation is linear


def slerp(a: Tensor, b: Tensor, part: float | Tensor) -> Tensor:
    """Spherical interpolation from a to b [B, …], for each picture; part: [B] or one number.

    Shoemake 1985. Linear interpolation of unit noise would halve the variance in the middle, which
    no denoiser was trained on.
    """
    flat = (a.double().flatten(1), b.double().flatten(1))
    lengths = [one.norm(dim=1) for one in flat]
    cosine = (flat[0] * flat[1]).sum(1) / (lengths[0] * lengths[1]).clamp(min=1e-300)
    angle = cosine.clamp(-1, 1).acos()
    share = torch.as_tensor(part, dtype=torch.float64, device=a.device).expand(len(a))
    sine = angle.sin()
    straight = sine < PARALLEL
    sine = torch.where(straight, torch.ones_like(sine), sine)
    left = torch.where(straight, 1 - share, ((1 - share) * angle).sin() / sine)
    right = torch.where(straight, share, (share * angle).sin() / sine)
    shape = (-1, *[1] * (a.ndim - 1))
    return (left.reshape(shape) * a.double() + right.reshape(shape) * b.double()).to(a)


class NoiseBetween:
    """Noise interpolated by `part` [B] between that of two batches."""

    def __init__(self, first: PictureNoise, last: PictureNoise, part: Tensor) -> None:
        self.first, self.last, self.part = first, last, part

    def start(self, which: int = 0) -> Tensor:
        """The start of a sampling pass, unit normal [B, *shape]; which: the pass, from 0."""
        return slerp(self.first.start(which), self.last.start(which), self.part)

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The noise of the next stochastic step, unit normal [B, *shape]."""
        return slerp(self.first(sigma, sigma_next), self.last(sigma, sigma_next), self.part)
