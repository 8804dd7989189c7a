"""Schedules that place times, for any process.

The first three are the spacings of Lin et al. 2024 (table 2), with integer time steps of a discrete
process, on which its network was trained; the others have fractional ones too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from undust.diffusion.process import VP, Process
from undust.diffusion.schedules.quantile import beta_quantile
from undust.diffusion.schedules.registry import ramp, schedule
from undust.errors import UndustError

STEPS_OFFSET = 1  # leading: Stable Diffusion counts time steps from 1


def _places(process: Process, steps: int) -> Tensor:
    """0 … steps − 1 in float64; UndustError if there are fewer time steps."""
    if isinstance(process, VP) and steps > process.steps:
        raise UndustError(
            f"steps: {steps} is more than the {process.steps} time steps the model was trained on; "
            "the schedules karras and exponential take any number"
        )
    return torch.arange(steps, dtype=torch.float64)


def _between(process: Process, share: Tensor) -> Tensor:
    """Times from the last (share 0) to the first (share 1)."""
    first, last = process.time_range
    return torch.lerp(share.new_tensor(last), share.new_tensor(first), share)


@schedule("leading")
def leading(process: Process, steps: int) -> Tensor:
    """Every ⌊T/steps⌋-th time step from 1; starts below the largest σ."""
    places = _places(process, steps).flip(0)
    if not isinstance(process, VP):
        return process.sigma(_between(process, 1 - places / steps))
    times = places * (process.steps // steps)
    # With as many steps as time steps, counting from 1 would exceed the last.
    times += min(STEPS_OFFSET, process.steps - 1 - int(times[0]))
    return process.sigma(times)


@schedule("trailing")
def trailing(process: Process, steps: int) -> Tensor:
    """Even time steps from the last one down; starts at the largest σ."""
    places = _places(process, steps)
    if not isinstance(process, VP):
        return process.sigma(process.time_range[1] * (1 - places / steps))
    times = process.steps - places * process.steps / steps
    return process.sigma(times.round() - 1)


@schedule("linspace")
def linspace(process: Process, steps: int) -> Tensor:
    """Even time steps from the last one to the first one, inclusive."""
    share = _places(process, steps) / max(steps - 1, 1)
    if not isinstance(process, VP):
        return process.sigma(_between(process, share))
    top = process.steps - 1
    return process.sigma((top - _places(process, steps) * top / max(steps - 1, 1)).round())


@schedule("sgm-uniform")
def sgm_uniform(process: Process, steps: int) -> Tensor:
    """Even times, of `steps` + 1 from the last one to the first all but the first.

    As ComfyUI's sgm_uniform, with fractional time steps. SDXL's published code rounds them down;
    `trailing` is the same if the number of steps divides that of time steps.
    """
    return process.sigma(_between(process, ramp(steps + 1)[:-1]))


@schedule("beta")
def beta(process: Process, steps: int, *, alpha: float = 0.6, beta: float = 0.6) -> Tensor:
    """Even quantiles of a beta distribution of times: more at both ends (Lee et al. 2024).

    alpha, beta: below 1 for more steps at the first and the last times; 1 and 1 is sgm-uniform.
    """
    return process.sigma(
        _between(process, 1 - beta_quantile(1 - ramp(steps + 1)[:-1], alpha, beta))
    )
