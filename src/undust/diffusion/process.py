"""How noise level, time step and input scale belong together: the forward process of a model.

Seed 001, eq. 1 writes it as dx = f(t)·x dt + g(t) dw. Dividing x by the signal that f leaves over
gives x = x0 + σ·n, in which only σ(t) remains; all else in this package works in that coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from undust.diffusion.registry import Registry
from undust.errors import UndustError

SNAP = 1e-4  # a time step this near to a whole one is that one: float32 σ cannot say it better


@dataclass(frozen=True, eq=False)
class VP:
    """The discrete variance-preserving process (Ho et al. 2020, eq. 2 and 4).

    betas: [T] float64 on the CPU, each in (0, 1); the variance added by each of the T steps.
    Raises UndustError for other betas.
    """

    betas: Tensor

    def __post_init__(self) -> None:
        if self.betas.ndim != 1 or len(self.betas) < 2 or self.betas.dtype != torch.float64:
            raise UndustError("betas: a float64 vector of at least two steps is needed")
        if not bool(((self.betas > 0) & (self.betas < 1)).all()):
            raise UndustError("betas: every one has to lie between 0 and 1, both excluded")

    @property
    def steps(self) -> int:
        """T, the number of training time steps."""
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """[T] float64: the share of the picture's variance that is left at each time step."""
        return (1 - self.betas).cumprod(0)

    @cached_property
    def sigmas(self) -> Tensor:
        """[T] float64, increasing: noise over signal at each time step."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    @cached_property
    def _log_sigmas(self) -> Tensor:
        return self.sigmas.log()

    @property
    def sigma_min(self) -> float:
        """σ of the first time step."""
        return self.sigmas[0].item()

    @property
    def sigma_max(self) -> float:
        """σ of the last time step."""
        return self.sigmas[-1].item()

    def timestep(self, sigma: Tensor) -> Tensor:
        """The time step of σ, float64 in [0, T−1]: linear in log σ between whole steps."""
        table = self._log_sigmas.to(sigma.device)
        level = sigma.double().log().contiguous()
        low = (torch.searchsorted(table, level, right=True) - 1).clamp(0, self.steps - 2)
        part = ((level - table[low]) / (table[low + 1] - table[low])).clamp(0, 1)
        time = low + part
        whole = time.round()
        return torch.where((time - whole).abs() < SNAP, whole, time)

    def sigma(self, timestep: Tensor | float) -> Tensor:
        """The inverse of `timestep`: σ in float64 of whole or fractional time steps in [0, T−1]."""
        time = torch.as_tensor(timestep).double()
        low = time.floor().long().clamp(0, self.steps - 2)
        table = self._log_sigmas.to(time.device)
        level = torch.lerp(table[low], table[low + 1], (time - low).clamp(0, 1))
        # A whole step is read from the table, so that log and exp do not blur it.
        exact = self.sigmas.to(time.device)[time.round().long().clamp(0, self.steps - 1)]
        return torch.where(time == time.round(), exact, level.exp())

    def input_scale(self, sigma: Tensor) -> Tensor:
        """What x = x0 + σ·n is multiplied with before the network sees it: variance 1 again."""
        return (1 + sigma**2).rsqrt()

    def start(self, noise: Tensor, sigma: Tensor | float) -> Tensor:
        """Pure noise of variance 1 [B, …] as an x at level σ: what the network sees is `noise`."""
        return noise * (1 + torch.as_tensor(sigma).double() ** 2).sqrt().to(noise)


PROCESSES: Registry[Callable[..., VP]] = Registry("process")


def _process(name: str) -> Callable[[Callable[..., VP]], Callable[..., VP]]:
    def register(build: Callable[..., VP]) -> Callable[..., VP]:
        PROCESSES[name] = build
        return build

    return register


@_process("linear")
def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> VP:
    """β grows evenly (Ho et al. 2020, §4)."""
    return VP(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64))


@_process("scaled-linear")
def scaled_linear(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> VP:
    """√β grows evenly: latent diffusion's and Stable Diffusion's "linear" (Rombach et al. 2022)."""
    roots = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), steps, dtype=torch.float64)
    return VP(roots**2)


@_process("cosine")
def cosine(steps: int = 1000, beta_start: float | None = None, beta_end: float | None = None) -> VP:
    """ᾱ falls as a squared cosine, β at most 0.999 (Nichol & Dhariwal 2021, eq. 17).

    The curve has no ends to set; the two arguments let every process be built by the same call.
    """
    del beta_start, beta_end
    time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    left = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return VP((1 - left[1:] / left[:-1]).clamp(max=0.999))
