"""The error of the denoised latents of real pictures, by noise level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undust.explain.setup import NetworkChange, Setup

LEVELS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # noise levels, in units of the latents' deviation


def used_levels(setup: Setup) -> list[float]:
    """Those of `LEVELS` that the process of the model has."""
    unit, process = setup.latents.std().item(), setup.model.process
    return [each for each in LEVELS if process.sigma_min <= each * unit <= process.sigma_max]


def denoising_errors(
    setup: Setup, levels: Sequence[float], change: NetworkChange | None = None
) -> Tensor:
    """The root mean square error of x0 for each real picture [N, levels], without a prompt.

    Levels and errors are in units of the latents' deviation.
    """
    unit = setup.latents.std().item()
    noise = setup.noise(setup.latents, 0)
    found: list[Tensor] = []
    for level in levels:
        estimate = setup.estimate(setup.latents + unit * level * noise, unit * level, change)
        found.append((estimate - setup.latents).square().flatten(1).mean(1).sqrt() / unit)
    return torch.stack(found, 1)
