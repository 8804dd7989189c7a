"""Continuous processes: VP, sub-VP, VE, EDM and rectified flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from undust.diffusion.process.base import SIGMA_INF, Process, as_float64, process, snap
from undust.errors import UndustError

FIRST = 1e-3  # VP's first time, where DDPM's first step is; sub-VP's too (Song et al. 2021b, C)


def _rising(low_name: str, low: float, high_name: str, high: float) -> None:
    """Raises UndustError unless 0 < low < high < ∞."""
    if not 0 < low < high < math.inf:
        raise UndustError(f"{low_name}: 0 < {low_name} < {high_name} is needed, not {low}, {high}")


@dataclass(frozen=True)
class _LinearBeta:
    """β(t) = β_min + (β_max − β_min)·t, t in (0, 1], with the integral B(t) = ∫β."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    steps: int = 1000
    """T: the network's time step is (T − 1)·t, as for a discrete process of T steps."""

    def __post_init__(self) -> None:
        _rising("beta_min", self.beta_min, "beta_max", self.beta_max)

    @property
    def time_range(self) -> tuple[float, float]:
        """The first and the last time."""
        return FIRST, 1.0

    def beta(self, time: Tensor | float) -> Tensor:
        """β(t)."""
        return self.beta_min + (self.beta_max - self.beta_min) * as_float64(time)

    def total(self, time: Tensor | float) -> Tensor:
        """B(t) = ∫β from 0 to t."""
        return (self.beta_min + self.beta(time)) / 2 * time

    def alpha(self, time: Tensor | float) -> Tensor:
        """e^(−B/2)."""
        return (-self.total(time) / 2).exp()

    def f(self, time: Tensor | float) -> Tensor:
        """−β/2."""
        return -self.beta(time) / 2

    def _when(self, total: Tensor) -> Tensor:
        """The inverse of `total`: the positive root of (β_max − β_min)/2·t² + β_min·t = B."""
        rise = self.beta_max - self.beta_min
        # 2B/(β_min + √…) and not (√… − β_min)/rise, which loses the digits of a small t.
        return 2 * total / (self.beta_min + (self.beta_min**2 + 2 * rise * total).sqrt())


@process("vp")
@dataclass(frozen=True)
class ContinuousVP(_LinearBeta, Process):
    """The limit of infinitely many steps of "linear": α² + s² = 1 (Song et al. 2021b, eq. 11)."""

    def std(self, time: Tensor | float) -> Tensor:
        """√(1 − e^(−B))."""
        return (-(-self.total(time)).expm1()).sqrt()

    def g(self, time: Tensor | float) -> Tensor:
        """√β."""
        return self.beta(time).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """From B = log(1 + σ²)."""
        return self._when((sigma.double() ** 2).log1p())

    def timestep(self, sigma: Tensor) -> Tensor:
        """(T − 1)·t."""
        return (self.steps - 1) * self.time(sigma)

    def input_scale(self, sigma: Tensor) -> Tensor:
        """1/√(1 + σ²)."""
        return (1 + sigma**2).rsqrt()


@process("sub-vp")
@dataclass(frozen=True)
class SubVP(_LinearBeta, Process):
    """As VP, with less noise in between: s = 1 − α² (Song et al. 2021b, eq. 12)."""

    def std(self, time: Tensor | float) -> Tensor:
        """1 − e^(−B)."""
        return -(-self.total(time)).expm1()

    def g(self, time: Tensor | float) -> Tensor:
        """√(β·(1 − e^(−2B)))."""
        return (self.beta(time) * -(-2 * self.total(time)).expm1()).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """From σ = e^(B/2) − e^(−B/2) = 2·sinh(B/2)."""
        return self._when(2 * (sigma.double() / 2).asinh())

    def timestep(self, sigma: Tensor) -> Tensor:
        """(T − 1)·t."""
        return (self.steps - 1) * self.time(sigma)

    def input_scale(self, sigma: Tensor) -> Tensor:
        """e^(−B/2): the network's input is x_t, whose variance is at most 1."""
        return (-(sigma / 2).asinh()).exp()


@process("ve")
@dataclass(frozen=True)
class VE(Process):
    """Variance exploding: α = 1, log σ linear in time (Song et al. 2021b, eq. 9 and C)."""

    lowest: float = 0.01
    highest: float = 50.0

    def __post_init__(self) -> None:
        _rising("lowest", self.lowest, "highest", self.highest)

    @property
    def time_range(self) -> tuple[float, float]:
        """The first and the last time."""
        return 0.0, 1.0

    @property
    def _ratio(self) -> float:
        return math.log(self.highest / self.lowest)

    def alpha(self, time: Tensor | float) -> Tensor:
        """1."""
        return torch.ones_like(as_float64(time))

    def std(self, time: Tensor | float) -> Tensor:
        """σ = lowest·(highest/lowest)^t."""
        return self.lowest * (self._ratio * as_float64(time)).exp()

    def f(self, time: Tensor | float) -> Tensor:
        """0."""
        return torch.zeros_like(as_float64(time))

    def g(self, time: Tensor | float) -> Tensor:
        """σ·√(2·log(highest/lowest))."""
        return self.std(time) * math.sqrt(2 * self._ratio)

    def time(self, sigma: Tensor) -> Tensor:
        """log(σ/lowest)/log(highest/lowest)."""
        return (sigma.double() / self.lowest).log() / self._ratio

    def timestep(self, sigma: Tensor) -> Tensor:
        """σ itself."""
        return sigma.double()

    def input_scale(self, sigma: Tensor) -> Tensor:
        """1: the network's input is x."""
        return torch.ones_like(sigma)


@process("edm")
@dataclass(frozen=True)
class EDM(Process):
    """Time is σ, and inputs are scaled to variance 1 (Karras et al. 2022, table 1, last column).

    sigma_data: the standard deviation of the pictures, also used by the prediction.
    """

    lowest: float = 0.002
    highest: float = 80.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _rising("lowest", self.lowest, "highest", self.highest)

    @property
    def time_range(self) -> tuple[float, float]:
        """The first and the last time."""
        return self.lowest, self.highest

    def alpha(self, time: Tensor | float) -> Tensor:
        """1."""
        return torch.ones_like(as_float64(time))

    def std(self, time: Tensor | float) -> Tensor:
        """σ = t."""
        return as_float64(time)

    def f(self, time: Tensor | float) -> Tensor:
        """0."""
        return torch.zeros_like(as_float64(time))

    def g(self, time: Tensor | float) -> Tensor:
        """√(2t)."""
        return (2 * as_float64(time)).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """σ."""
        return sigma.double()

    def timestep(self, sigma: Tensor) -> Tensor:
        """c_noise = ¼·log σ."""
        return sigma.double().log() / 4

    def input_scale(self, sigma: Tensor) -> Tensor:
        """c_in = 1/√(σ² + σ_data²): variance 1."""
        return (sigma**2 + self.sigma_data**2).rsqrt()

    def start(self, noise: Tensor, sigma: Tensor | float) -> Tensor:
        """With the variance of x0 + σ·n for σ_data, so that the network's input is `noise`."""
        return noise * (torch.as_tensor(sigma).double() ** 2 + self.sigma_data**2).sqrt().to(noise)


@process("flow")
@dataclass(frozen=True)
class Flow(Process):
    """Rectified flow: x_t = (1 − τ)·x0 + τ·n (Liu et al. 2023, eq. 1; Esser et al. 2024, eq. 13).

    τ = shift·t/(1 + (shift − 1)·t) (Esser et al. 2024, eq. 23), so σ = τ/(1 − τ) = shift·t/(1 − t):
    a shift is a factor of σ, and moves even times towards the noise. It changes nothing at a given
    σ; the network's time step is T·τ. The last σ, infinite at t = 1, is SIGMA_INF.
    """

    MIN_SHIFT: ClassVar = 1e-3  # with a shift much smaller the last time is 1 in float64
    MAX_SHIFT: ClassVar = 1e3

    shift: float = 1.0
    steps: int = 1000

    def __post_init__(self) -> None:
        if not self.MIN_SHIFT <= self.shift <= self.MAX_SHIFT:
            raise UndustError(
                f"shift: {self.shift} is not a factor from {self.MIN_SHIFT:g} to "
                f"{self.MAX_SHIFT:g}; "
                "1 shifts nothing"
            )

    @property
    def time_range(self) -> tuple[float, float]:
        """1/T and the time of SIGMA_INF, just below 1."""
        return 1 / self.steps, SIGMA_INF / (SIGMA_INF + self.shift)

    def _spread(self, time: Tensor | float) -> Tensor:
        return 1 + (self.shift - 1) * as_float64(time)

    def alpha(self, time: Tensor | float) -> Tensor:
        """1 − τ."""
        return (1 - as_float64(time)) / self._spread(time)

    def std(self, time: Tensor | float) -> Tensor:
        """τ."""
        return self.shift * as_float64(time) / self._spread(time)

    def f(self, time: Tensor | float) -> Tensor:
        """−dτ/dt/(1 − τ); −1/(1 − t) without a shift."""
        return -self.shift / ((1 - as_float64(time)) * self._spread(time))

    def g(self, time: Tensor | float) -> Tensor:
        """g² = 2τ·dτ/dt/(1 − τ) = −2τ·f; 2t/(1 − t) without a shift."""
        return (-2 * self.std(time) * self.f(time)).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """σ/(σ + shift)."""
        sigma = sigma.double()
        return sigma / (sigma + self.shift)

    def timestep(self, sigma: Tensor) -> Tensor:
        """T·τ = T·σ/(1 + σ)."""
        sigma = sigma.double()
        return snap(self.steps * sigma / (1 + sigma))

    def input_scale(self, sigma: Tensor) -> Tensor:
        """1/(1 + σ): the network's input is x_t."""
        return 1 / (1 + sigma)
