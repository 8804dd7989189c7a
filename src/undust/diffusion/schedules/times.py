"""Schedules that place times, of whichever process.

The first three are the spacings of Lin et al. 2024 (table 2). A discrete process is asked at whole
time steps by them, those that its network was trained on; by the others at fractional ones too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from undust.diffusion.process import VP, Process
from undust.diffusion.schedules.quantile import beta_quantile
from undust.diffusion.schedules.registry import ramp, schedule
from undust.errors import UndustError

STEPS_OFFSET = 1  # leading: Stable Diffusion counts its time steps from 1


def _places(process: Process, steps: int) -> Tensor:
    """0 … steps − 1 in float64, if there are that many time steps to choose from."""
    if isinstance(process, VP) and steps > process.steps:
        raise UndustError(
            f"steps: {steps} is more than the {process.steps} time steps the model was trained on; "
            "the schedules karras and exponential take any number"
        )
    return torch.arange(steps, dtype=torch.float64)


def _between(process: Process, share: Tensor) -> Tensor:
    """Times: the last one for a share of 0, the first one for 1."""
    first, last = process.time_range
    return torch.lerp(share.new_tensor(last), share.new_tensor(first), share)


@schedule("leading")
def leading(process: Process, steps: int) -> Tensor:
    """Every ⌊T/steps⌋-th time step from 1 up; starts below the strongest noise."""
    places = _places(process, steps).flip(0)
    if not isinstance(process, VP):
        return process.sigma(_between(process, 1 - places / steps))
    times = places * (process.steps // steps)
    # With as many steps as there are, counting from 1 would run past the end.
    times += min(STEPS_OFFSET, process.steps - 1 - int(times[0]))
    return process.sigma(times)


@schedule("trailing")
def trailing(process: Process, steps: int) -> Tensor:
    """Even time steps from the last one down; starts at the strongest noise."""
    places = _places(process, steps)
    if not isinstance(process, VP):
        return process.sigma(process.time_range[1] * (1 - places / steps))
    times = process.steps - places * process.steps / steps
    return process.sigma(times.round() - 1)


@schedule("linspace")
def linspace(process: Process, steps: int) -> Tensor:
    """Even time steps from the last one to the first one, both visited."""
    share = _places(process, steps) / max(steps - 1, 1)
    if not isinstance(process, VP):
        return process.sigma(_between(process, share))
    top = process.steps - 1
    return process.sigma((top - _places(process, steps) * top / max(steps - 1, 1)).round())


@schedule("sgm-uniform")
def sgm_uniform(process: Process, steps: int) -> Tensor:
    """Even times from the last one down, one more than asked for, without the last of them.

    As ComfyUI's sgm_uniform: fractional time steps. The code that SDXL was published with rounds
    them down to whole ones; `trailing` has the same where the steps divide the time steps.
    """
    return process.sigma(_between(process, ramp(steps + 1)[:-1]))


@schedule("beta")
def beta(process: Process, steps: int, *, alpha: float = 0.6, beta: float = 0.6) -> Tensor:
    """Even quantiles of a beta distribution of times: more at both ends (Lee et al. 2024).

    alpha, beta: below 1 draws steps to the first and the last times; 1 and 1 is sgm-uniform.
    """
    return process.sigma(
        _between(process, 1 - beta_quantile(1 - ramp(steps + 1)[:-1], alpha, beta))
    )
