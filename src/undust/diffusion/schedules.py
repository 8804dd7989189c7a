"""Which noise levels a sampler visits: a schedule is a strictly falling list of σ that ends with 0.

The three spacings of time steps are those of Lin et al. 2024 (table 2), rounded to the whole steps
that a network was trained on; the other two place σ itself, and the time steps become fractional.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from undust.diffusion.process import VP
from undust.diffusion.registry import Registry
from undust.errors import UndustError

Schedule = Callable[[VP, int], Tensor]

SCHEDULES: Registry[Schedule] = Registry("schedule")
"""name -> (process, steps) -> σ, float64 [steps + 1], strictly falling, the last one 0."""

RHO = 7.0  # Karras et al. 2022, eq. 5: how much closer together the small σ lie
STEPS_OFFSET = 1  # leading: Stable Diffusion counts its time steps from 1


def schedule(name: str) -> Callable[[Schedule], Schedule]:
    """Registers a function (process, steps) -> σ [steps]; checks the steps and appends the 0."""

    def register(levels: Schedule) -> Schedule:
        @wraps(levels)
        def complete(process: VP, steps: int) -> Tensor:
            if steps < 1:
                raise UndustError(f"steps: {steps} is too few; at least 1 is needed")
            sigmas = levels(process, steps)
            return torch.cat([sigmas, sigmas.new_zeros(1)])

        SCHEDULES[name] = complete
        return complete

    return register


def _places(process: VP, steps: int) -> Tensor:
    """0 … steps − 1 in float64, if there are that many time steps to choose from."""
    if steps > process.steps:
        raise UndustError(
            f"steps: {steps} is more than the {process.steps} time steps the model was trained on; "
            "the schedules karras and exponential take any number"
        )
    return torch.arange(steps, dtype=torch.float64)


@schedule("leading")
def leading(process: VP, steps: int) -> Tensor:
    """Every ⌊T/steps⌋-th time step from 1 up; starts below the strongest noise."""
    ratio = process.steps // steps
    times = _places(process, steps).flip(0) * ratio
    # With as many steps as there are, counting from 1 would run past the end.
    times += min(STEPS_OFFSET, process.steps - 1 - int(times[0]))
    return process.sigma(times)


@schedule("trailing")
def trailing(process: VP, steps: int) -> Tensor:
    """Even time steps from the last one down; starts at the strongest noise."""
    times = process.steps - _places(process, steps) * process.steps / steps
    return process.sigma(times.round() - 1)


@schedule("linspace")
def linspace(process: VP, steps: int) -> Tensor:
    """Even time steps from the last one to the first one, both visited."""
    top = process.steps - 1
    return process.sigma((top - _places(process, steps) * top / max(steps - 1, 1)).round())


@schedule("karras")
def karras(process: VP, steps: int) -> Tensor:
    """Even in σ^(1/7): more of the steps where little noise is left (Karras et al. 2022, eq. 5)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    top, bottom = process.sigma_max ** (1 / RHO), process.sigma_min ** (1 / RHO)
    return torch.lerp(ramp.new_tensor(top), ramp.new_tensor(bottom), ramp) ** RHO


@schedule("exponential")
def exponential(process: VP, steps: int) -> Tensor:
    """Even in log σ."""
    ends = process.sigmas[[-1, 0]].log()
    return torch.lerp(ends[0], ends[1], torch.linspace(0, 1, steps, dtype=torch.float64)).exp()
