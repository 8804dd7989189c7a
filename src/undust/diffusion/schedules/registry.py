"""What a schedule is, and the chores that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from undust.diffusion.process import Process
from undust.diffusion.registry import Registry
from undust.errors import UndustError

Schedule = Callable[..., Tensor]

SCHEDULES: Registry[Schedule] = Registry("schedule")
"""name -> (process, steps) -> σ, float64 [steps + 1], strictly falling, the last one 0."""


def schedule(name: str) -> Callable[[Schedule], Schedule]:
    """Registers a function (process, steps) -> σ [steps]; checks the steps and appends the 0.

    The schedule raises UndustError for less than one step, and if the process has no room for it.
    """

    def register(levels: Schedule) -> Schedule:
        @wraps(levels)
        def complete(process: Process, steps: int, **options: Any) -> Tensor:
            if steps < 1:
                raise UndustError(f"steps: {steps} is too few; at least 1 is needed")
            sigmas: Tensor = levels(process, steps, **options)
            sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
            falling = bool((sigmas.diff() < 0).all() and sigmas.isfinite().all())
            if not falling or sigmas[0] > process.sigma_max * (1 + 1e-9):
                raise UndustError(
                    f"schedule {name}: {steps} steps do not fit between the process's "
                    f"σ {process.sigma_max:.4g} and {process.sigma_min:.4g}"
                )
            return sigmas

        SCHEDULES[name] = complete
        return complete

    return register


def ramp(steps: int) -> Tensor:
    """`steps` even numbers from 0 to 1, both included; 0 alone for one. float64."""
    return torch.linspace(0, 1, steps, dtype=torch.float64)
