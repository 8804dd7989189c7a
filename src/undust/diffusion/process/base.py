"""The forward process of a model: noise level σ, time and input scale.

Seed 001, eq. 1 is dx = f(t)·x dt + g(t) dw, solved by x_t = α(t)·x0 + s(t)·n. Dividing by α gives
x = x0 + σ·n with σ = s/α; everything else in this package uses that coordinate, in which processes
differ only in the σ of each time and in the input of their networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from undust.diffusion.registry import Registry

SIGMA_INF = 2.0**24
"""The σ used for ∞, where a process ends in pure noise (zero terminal SNR, rectified flow).

x = x0 + σ·n has no σ = ∞. At 2²⁴ the share 1/σ of x0 is float32's rounding error: x contains
nothing of the picture, and an Euler step from there differs from the exact one by 1/σ = 6e-8 of the
noise. Its square is far below float32's maximum. There x0 cannot be computed from ε (x − σ·ε loses
all digits), but from v, the flow's velocity and x0 itself.
"""

SNAP = 1e-4  # time steps this close to an integer are rounded: the precision of σ in float32
BISECTIONS = 60  # of the range of log σ, down to float64's precision


def as_float64(time: Tensor | float) -> Tensor:
    """Times as a float64 tensor, without rounding Python numbers."""
    return torch.as_tensor(time, dtype=torch.float64)


def snap(timestep: Tensor) -> Tensor:
    """Time steps, rounded where they are nearly integers."""
    whole = timestep.round()
    return torch.where((timestep - whole).abs() < SNAP, whole, timestep)


class Process(Protocol):
    """x_t = α(t)·x0 + s(t)·n. Times and functions of them are float64 of any shape."""

    @property
    def time_range(self) -> tuple[float, float]:
        """The first and the last time."""
        ...

    def alpha(self, time: Tensor | float) -> Tensor:
        """α(t): the scale of the picture in x_t."""
        ...

    def std(self, time: Tensor | float) -> Tensor:
        """s(t): the standard deviation of the noise in x_t."""
        ...

    def f(self, time: Tensor | float) -> Tensor:
        """The drift of eq. 1: f = d log α/dt."""
        ...

    def g(self, time: Tensor | float) -> Tensor:
        """The diffusion of eq. 1: g² = ds²/dt − 2f·s², which is α²·dσ²/dt."""
        ...

    def time(self, sigma: Tensor) -> Tensor:
        """The inverse of `sigma`."""
        ...

    def input_scale(self, sigma: Tensor) -> Tensor:
        """The factor of x = x0 + σ·n in the network's input."""
        ...

    def timestep(self, sigma: Tensor) -> Tensor:
        """The network's time step for σ, float64."""
        ...

    def sigma(self, time: Tensor | float) -> Tensor:
        """σ(t) = s/α, noise over signal."""
        return self.std(time) / self.alpha(time)

    def sigma_at(self, timestep: Tensor) -> Tensor:
        """σ of the network's time step, float64: the inverse of `timestep`, by bisection.

        The nearer end of the process for time steps outside.
        """
        target = timestep.double()
        low = torch.full_like(target, math.log(self.sigma_min))
        high = torch.full_like(target, math.log(self.sigma_max))
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            above = self.timestep(middle.exp()) > target
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return high.exp()

    @property
    def sigma_min(self) -> float:
        """σ of the first time."""
        return self.sigma(self.time_range[0]).item()

    @property
    def sigma_max(self) -> float:
        """σ of the last time."""
        return self.sigma(self.time_range[1]).item()

    @property
    def ends_in_noise(self) -> bool:
        """Whether the last time is pure noise, with σ = SIGMA_INF."""
        return self.sigma_max > SIGMA_INF / 2

    @property
    def default_schedule(self) -> str:
        """The default schedule for sampling: karras, or trailing if it ends in pure noise.

        From an infinite σ, a spacing in σ would spend its steps on levels of pure noise; even times
        from the last one are the choice of Lin et al. 2024 (§3.3) and of rectified flow.
        """
        return "trailing" if self.ends_in_noise else "karras"

    def start(self, noise: Tensor, sigma: Tensor | float) -> Tensor:
        """Unit noise [B, …] scaled to x at level σ, with the variance of σ·n + x0, 1 for x0."""
        return noise * (1 + torch.as_tensor(sigma).double() ** 2).sqrt().to(noise)


PROCESSES: Registry[Callable[..., Process]] = Registry("process")
"""name -> function that builds it; every argument has a default."""

P = TypeVar("P", bound=Callable[..., Process])


def process(name: str) -> Callable[[P], P]:
    """Registers a class or a function that builds a process."""

    def register(build: P) -> P:
        PROCESSES[name] = build
        return build

    return register
