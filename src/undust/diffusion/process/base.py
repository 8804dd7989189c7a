"""How noise level, time and input scale belong together: the forward process of a model.

Seed 001, eq. 1 writes it as dx = f(t)·x dt + g(t) dw, solved by x_t = α(t)·x0 + s(t)·n. Dividing by
α gives x = x0 + σ·n with σ = s/α; all else in this package works in that coordinate, and two
processes differ in no more than which σ belongs to which time and what their networks are fed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from undust.diffusion.registry import Registry

SIGMA_INF = 2.0**24
"""σ that stands for ∞, where a process ends in noise alone (zero terminal SNR, rectified flow).

x = x0 + σ·n cannot hold σ = ∞. At 2²⁴ the share 1/σ of x0 is float32's rounding error: nothing of
the picture is left in x, and a step of Euler's method down from there differs from the exact one by
1/σ = 6e-8 of the noise. Its square is far from float32's largest number. A network that predicts ε
cannot say x0 there (x − σ·ε loses all digits); v, the flow's velocity and x0 itself can.
"""

SNAP = 1e-4  # a time step this near to a whole one is that one: float32 σ cannot say it better


def as_float64(time: Tensor | float) -> Tensor:
    """Times in float64; a Python number keeps all its digits."""
    return torch.as_tensor(time, dtype=torch.float64)


def snap(timestep: Tensor) -> Tensor:
    """Time steps, whole ones cleared of rounding."""
    whole = timestep.round()
    return torch.where((timestep - whole).abs() < SNAP, whole, timestep)


class Process(Protocol):
    """x_t = α(t)·x0 + s(t)·n. Times and what depends on them are float64 of any one shape."""

    @property
    def time_range(self) -> tuple[float, float]:
        """The first and the last time."""
        ...

    def alpha(self, time: Tensor | float) -> Tensor:
        """α(t): what is left of the picture."""
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
        """What x = x0 + σ·n is multiplied with before the network sees it."""
        ...

    def timestep(self, sigma: Tensor) -> Tensor:
        """What the network is told of σ, float64."""
        ...

    def sigma(self, time: Tensor | float) -> Tensor:
        """σ(t) = s/α, noise over signal."""
        return self.std(time) / self.alpha(time)

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
        """Whether nothing of the picture is left at the last time: its σ stands for ∞."""
        return self.sigma_max > SIGMA_INF / 2

    @property
    def default_schedule(self) -> str:
        """The schedule to sample with, unless told otherwise: karras, or trailing.

        From an infinite σ down, a spacing of σ spends its steps where nothing can be seen; even
        times from the very last one are what Lin et al. 2024 ask for (§3.3), and rectified flow's.
        """
        return "trailing" if self.ends_in_noise else "karras"

    def start(self, noise: Tensor, sigma: Tensor | float) -> Tensor:
        """Noise of variance 1 [B, …] as an x at level σ: as strong as σ·n + x0 of variance 1."""
        return noise * (1 + torch.as_tensor(sigma).double() ** 2).sqrt().to(noise)


PROCESSES: Registry[Callable[..., Process]] = Registry("process")
"""name -> how to build it; every argument has a default."""

P = TypeVar("P", bound=Callable[..., Process])


def process(name: str) -> Callable[[P], P]:
    """Registers a class or a function that builds a process."""

    def register(build: P) -> P:
        PROCESSES[name] = build
        return build

    return register
