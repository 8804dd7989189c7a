"""The discrete variance-preserving process, given by the variance β of each of T steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from undust.diffusion.process.base import SIGMA_INF, Process, as_float64, process, snap
from undust.diffusion.registry import Registry
from undust.errors import UndustError


@dataclass(frozen=True, eq=False)
class VP(Process):
    """The discrete variance-preserving process (Ho et al. 2020, eq. 2 and 4).

    betas: [T] float64 on the CPU, each in (0, 1); the variance added by each of the T steps.
    Time is the time step, 0 … T−1; log σ is interpolated linearly between them.
    Raises UndustError for other betas.
    """

    betas: Tensor

    def __post_init__(self) -> None:
        if self.betas.ndim != 1 or len(self.betas) < 2 or self.betas.dtype != torch.float64:
            raise UndustError("betas: a float64 vector of at least two steps is needed")
        if not bool(((self.betas > 0) & (self.betas < 1)).all()):
            raise UndustError("betas: all have to be above 0 and below 1")

    @property
    def steps(self) -> int:
        """T, the number of training time steps."""
        return len(self.betas)

    @property
    def time_range(self) -> tuple[float, float]:
        """The first and the last time step."""
        return 0.0, self.steps - 1.0

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ = α², [T] float64: the share of the picture's variance left at each time step."""
        return (1 - self.betas).cumprod(0)

    @cached_property
    def sigmas(self) -> Tensor:
        """[T] float64, increasing: noise over signal at each time step."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    @cached_property
    def _log_sigmas(self) -> Tensor:
        return self.sigmas.log()

    def timestep(self, sigma: Tensor) -> Tensor:
        """The time step of σ, float64 in [0, T−1]: linear in log σ between whole steps."""
        table = self._log_sigmas.to(sigma.device)
        level = sigma.double().log().contiguous()
        low = (torch.searchsorted(table, level, right=True) - 1).clamp(0, self.steps - 2)
        part = ((level - table[low]) / (table[low + 1] - table[low])).clamp(0, 1)
        return snap(low + part)

    time = timestep

    def sigma_at(self, timestep: Tensor) -> Tensor:
        """`sigma`, since time steps are times here."""
        return self.sigma(timestep)

    def sigma(self, time: Tensor | float) -> Tensor:
        """The inverse of `timestep`: σ in float64 of whole or fractional time steps in [0, T−1]."""
        time = as_float64(time)
        low = self._piece(time)
        table = self._log_sigmas.to(time.device)
        level = torch.lerp(table[low], table[low + 1], (time - low).clamp(0, 1))
        # At integer steps σ is read from the table, without the rounding of log and exp.
        exact = self.sigmas.to(time.device)[time.round().long().clamp(0, self.steps - 1)]
        return torch.where(time == time.round(), exact, level.exp())

    def alpha(self, time: Tensor | float) -> Tensor:
        """1/√(1 + σ²), so that α² + s² = 1."""
        return self.input_scale(self.sigma(time))

    def std(self, time: Tensor | float) -> Tensor:
        """σ/√(1 + σ²)."""
        sigma = self.sigma(time)
        return sigma * self.input_scale(sigma)

    def beta(self, time: Tensor | float) -> Tensor:
        """β(t) = 2s²·d log σ/dt; its integral over a time step is −log(1 − β) of that step."""
        time = as_float64(time)
        low = self._piece(time)
        slope = self._log_sigmas.diff().to(time.device)[low]
        return 2 * self.std(time) ** 2 * slope

    def f(self, time: Tensor | float) -> Tensor:
        """−β/2 (Song et al. 2021b, eq. 11)."""
        return -self.beta(time) / 2

    def g(self, time: Tensor | float) -> Tensor:
        """√β (Song et al. 2021b, eq. 11)."""
        return self.beta(time).sqrt()

    def input_scale(self, sigma: Tensor) -> Tensor:
        """α = 1/√(1 + σ²), which scales x = x0 + σ·n to variance 1."""
        return (1 + sigma**2).rsqrt()

    def _piece(self, time: Tensor) -> Tensor:
        """The index of the table's interval that contains `time`."""
        return time.floor().long().clamp(0, self.steps - 2)


def zero_terminal_snr(process: VP) -> VP:
    """The process rescaled to end in pure noise (Lin et al. 2024, algorithm 1).

    √ᾱ is shifted and scaled to go from its first value to 0. The last σ is SIGMA_INF in place of ∞;
    predictions of v, the flow's velocity and x0 work from there. Raises UndustError for a process
    that is nearly pure noise one step before the last.
    """
    root = process.alphas_cumprod.sqrt()
    left = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    left[-1] = 1 / (1 + SIGMA_INF**2)
    if not bool(left[-2] > left[-1]):
        raise UndustError("zero terminal SNR: the process is pure noise before its last step")
    return VP(1 - left / torch.cat([left.new_ones(1), left[:-1]]))


DISCRETE: Registry[Callable[..., VP]] = Registry("process")
"""The PROCESSES with a table of β; all are built with (steps, beta_start, beta_end)."""


def _discrete(name: str) -> Callable[[Callable[..., VP]], Callable[..., VP]]:
    def register(build: Callable[..., VP]) -> Callable[..., VP]:
        DISCRETE[name] = process(name)(build)
        return build

    return register


@_discrete("linear")
def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> VP:
    """β is linear in the step (Ho et al. 2020, §4)."""
    return VP(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64))


@_discrete("scaled-linear")
def scaled_linear(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> VP:
    """√β is linear: "linear" in latent diffusion and Stable Diffusion (Rombach et al. 2022)."""
    roots = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), steps, dtype=torch.float64)
    return VP(roots**2)


@_discrete("cosine")
def cosine(steps: int = 1000, beta_start: float | None = None, beta_end: float | None = None) -> VP:
    """ᾱ falls as a squared cosine, β at most 0.999 (Nichol & Dhariwal 2021, eq. 17).

    beta_start and beta_end are ignored; they are there so that all processes are built alike.
    """
    del beta_start, beta_end
    time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    left = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return VP((1 - left[1:] / left[:-1]).clamp(max=0.999))


@_discrete("sigmoid")
def sigmoid(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> VP:
    """β grows along the logistic curve from −6 to 6 (GeoDiff's published code; Xu et al. 2022)."""
    curve = torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()
    return VP(beta_start + curve * (beta_end - beta_start))
