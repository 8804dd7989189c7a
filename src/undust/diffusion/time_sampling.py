"""The distributions of the noise levels that networks are trained at, by their quantiles.

All but "lognormal" are of the share of the process's time, 0 for its least noise and 1 for the
most: for rectified flow without a shift that is τ, the noise's share in x_t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from undust.diffusion.process import VP, Process
from undust.diffusion.process.base import SIGMA_INF
from undust.diffusion.registry import Registry, check_setting
from undust.diffusion.schedules.quantile import beta_quantile

NoiseLevels = Callable[[Tensor], Tensor]
"""Numbers in (0, 1) -> σ, float64, of the same shape."""

TIME_SAMPLINGS: Registry[Callable[..., NoiseLevels]] = Registry("sampling of times")
"""name -> function of the process that builds it; keyword-only parameters are its settings."""

B = TypeVar("B", bound=Callable[..., NoiseLevels])
HIGHEST_MODE = 2 / (math.pi - 2)  # up to which the map of "mode" is monotonic


def time_sampling(name: str) -> Callable[[B], B]:
    """Registers a function that builds noise levels."""

    def register(build: B) -> B:
        TIME_SAMPLINGS[name] = build
        return build

    return register


def at_share(process: Process, share: Tensor) -> Tensor:
    """σ at shares of a process's time, float64; of a discrete process that of whole time steps."""
    if isinstance(process, VP):
        return process.sigmas[(share * process.steps).long().clamp(max=process.steps - 1)]
    first, last = process.time_range
    return process.sigma(first + (last - first) * share)


@time_sampling("uniform")
def uniform_times(process: Process) -> NoiseLevels:
    """Evenly drawn times (Ho et al. 2020, algorithm 1)."""
    return lambda uniform: at_share(process, uniform)


@time_sampling("shifted")
def shifted_times(process: Process, *, shift: float = 3.0) -> NoiseLevels:
    """Even times, the share t moved to shift·t/(1 + (shift − 1)·t) (Esser et al. 2024, eq. 23).

    A shift above 1 draws high noise more often, which decides the content of pictures.
    """
    check_setting("shift", shift, 0)
    return lambda uniform: at_share(process, shift * uniform / (1 + (shift - 1) * uniform))


@time_sampling("logit-normal")
def logit_normal_times(
    process: Process, *, mean: float = 0.0, deviation: float = 1.0
) -> NoiseLevels:
    """A normal logit of the share (Esser et al. 2024, eq. 19).

    Li & He 2025 count the share of the picture: their P_mean −0.8 is mean 0.8 here.
    """
    check_setting("deviation", deviation, 0)
    return lambda uniform: at_share(
        process, (mean + deviation * torch.special.ndtri(uniform)).sigmoid()
    )


@time_sampling("mode")
def mode_times(process: Process, *, scale: float = 1.29) -> NoiseLevels:
    """Times that are drawn more often in the middle, or for scale < 0 at the ends.

    The map of Esser et al. 2024, eq. 20, at 1 − u, which makes it rise.
    """
    check_setting("scale", scale, -1, HIGHEST_MODE)
    return lambda uniform: at_share(
        process, uniform - scale * ((math.pi / 2 * uniform).sin() ** 2 - uniform)
    )


@time_sampling("cosmap")
def cosmap_times(process: Process) -> NoiseLevels:
    """As of the cosine process: the density 2/(π − 2πt + 2πt²) (Esser et al. 2024, eq. 21)."""
    return lambda uniform: at_share(process, 1 - 1 / ((math.pi / 2 * uniform).tan() + 1))


@time_sampling("beta")
def beta_times(process: Process, *, alpha: float = 2.0, beta: float = 2.0) -> NoiseLevels:
    """Shares with a beta distribution."""
    check_setting("alpha", alpha, 0, 5)
    check_setting("beta", beta, 0, 5)
    return lambda uniform: at_share(process, beta_quantile(uniform, alpha, beta))


@time_sampling("lognormal")
def lognormal_times(process: Process, *, mean: float = -1.2, deviation: float = 1.2) -> NoiseLevels:
    """A normal log σ, of a discrete process at the nearest time step (`lognormal`)."""
    check_setting("deviation", deviation, 0)

    def levels(uniform: Tensor) -> Tensor:
        sigma = lognormal(uniform, mean, deviation).clamp(max=SIGMA_INF)
        if isinstance(process, VP):
            return process.sigmas[process.timestep(sigma).round().long()]
        return sigma

    return levels


def lognormal(uniform: Tensor, mean: float = -1.2, deviation: float = 1.2) -> Tensor:
    """Training noise levels with a normal log σ (Karras et al. 2022, table 1, training).

    uniform: numbers in (0, 1); σ like it. In rectified flow's τ = σ/(1 + σ) the same is the
    logit-normal density, since logit τ = log σ (Esser et al. 2024, eq. 19: mean 0, deviation 1).
    """
    return (mean + deviation * torch.special.ndtri(uniform)).exp()
