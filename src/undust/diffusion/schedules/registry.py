"""The interface of schedules and their registry."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from undust.diffusion.aliases import ALSO_SCHEDULES, FROM_SCHEDULES
from undust.diffusion.process import Process
from undust.diffusion.registry import Registry
from undust.errors import UndustError

Schedule = Callable[..., Tensor]
LISTED = 1e-5  # relative tolerance of listed σ, which are written with few digits

SCHEDULES: Registry[Schedule] = Registry("schedule", FROM_SCHEDULES | ALSO_SCHEDULES)
"""name -> (process, steps) -> σ, float64 [steps + 1], strictly falling, the last one 0."""


def schedule(name: str) -> Callable[[Schedule], Schedule]:
    """Registers a function (process, steps) -> σ [steps]; checks the result and appends 0.

    The schedule raises UndustError for less than one step and for levels that do not fall.
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


def listed(schedule: str) -> Tensor | None:
    """The σ in a list such as "14.6,3.2,0.8", and 0 after them; None for a name.

    Raises UndustError for a list that is not of falling numbers above 0.
    """
    if not schedule[:1].isdigit():
        return None
    try:
        levels = [float(part) for part in schedule.split(",")]
    except ValueError as error:
        raise UndustError(f"schedule: {error}; σ are listed as in 14.6,3.2,0.8") from error
    sigmas = torch.tensor([*levels, 0.0] if levels[-1] else levels, dtype=torch.float64)
    if len(sigmas) < 2 or not bool((sigmas.diff() < 0).all() and sigmas.isfinite().all()):
        raise UndustError("schedule: the listed σ have to fall")
    return sigmas


def sigmas(schedule: str, process: Process, steps: int) -> Tensor:
    """σ [steps + 1] of a schedule by name, or as listed.

    Raises UndustError as the schedule does, for a list of another length, and for listed σ above
    the process's largest.
    """
    levels = listed(schedule)
    if levels is None:
        return SCHEDULES[schedule](process, steps)
    if len(levels) != steps + 1:
        raise UndustError(f"schedule: {len(levels) - 1} σ are listed, for {steps} steps")
    if levels[0] > process.sigma_max * (1 + LISTED):
        raise UndustError(
            f"schedule: σ = {levels[0]:g} is above the process's largest, {process.sigma_max:.6g}"
        )
    return levels


def ramp(steps: int) -> Tensor:
    """`steps` even numbers from 0 to 1, both included; 0 alone for one. float64."""
    return torch.linspace(0, 1, steps, dtype=torch.float64)
