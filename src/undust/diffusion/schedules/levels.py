"""Schedules that place σ itself, between the largest and the smallest of a process."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from undust.diffusion.process import Process
from undust.diffusion.schedules.registry import SCHEDULES, ramp, schedule

RHO = 7.0  # Karras et al. 2022, eq. 5: how much closer together the small σ lie
THRESHOLD = 0.025  # where Movie Gen's linear half ends, in rectified flow's time from the noise


def _even(top: float, bottom: float, share: Tensor) -> Tensor:
    return torch.lerp(share.new_tensor(top), share.new_tensor(bottom), share)


def _even_logs(process: Process, share: Tensor) -> Tensor:
    return _even(math.log(process.sigma_max), math.log(process.sigma_min), share).exp()


@schedule("karras")
def karras(process: Process, steps: int, *, rho: float = RHO) -> Tensor:
    """Even in σ^(1/7): more of the steps where little noise is left (Karras et al. 2022, eq. 5)."""
    top, bottom = process.sigma_max ** (1 / rho), process.sigma_min ** (1 / rho)
    return _even(top, bottom, ramp(steps)) ** rho


@schedule("exponential")
def exponential(process: Process, steps: int) -> Tensor:
    """Even in log σ, and so in log-SNR = −2·log σ, whatever the process (Lu et al. 2022a)."""
    return _even_logs(process, ramp(steps))


SCHEDULES["log-snr"] = exponential  # the same levels under their other name


@schedule("polyexponential")
def polyexponential(process: Process, steps: int, *, rho: float = 1.0) -> Tensor:
    """Even in a power of log σ, as k-diffusion has it: above the power 1 more of the small σ."""
    return _even_logs(process, 1 - (1 - ramp(steps)) ** rho)


@schedule("kl-optimal")
def kl_optimal(process: Process, steps: int) -> Tensor:
    """Even in arctan σ, the angle between noise and picture (Sabour et al. 2024, theorem 3.1).

    Of pictures with variance 1, Euler's method keeps Π cos(step in the angle) of the deviation they
    should have, and that is nearest to 1 for even steps.
    """
    angle = _even(math.atan(process.sigma_max), math.atan(process.sigma_min), ramp(steps))
    return angle.tan().clamp(max=process.sigma_max)


@schedule("linear-quadratic")
def linear_quadratic(process: Process, steps: int, *, threshold: float = THRESHOLD) -> Tensor:
    """Rectified flow's time at first in small even steps, then in growing ones (Movie Gen 2024).

    In τ = σ/(1 + σ): half of the steps cover the first `threshold` of it evenly, the others are
    quadratic down to 0, with the slope of the even half where they join.
    """
    even = steps // 2
    curved = steps - even
    place = torch.arange(steps, dtype=torch.float64)
    slope = threshold / max(even, 1)
    along = (place - even).clamp(min=0)
    bend = (1 - threshold - slope * curved) / curved**2
    gone = slope * place + bend * along**2
    top = process.sigma_max / (1 + process.sigma_max)
    left = top * (1 - gone)
    return (left / (1 - left)).clamp(max=process.sigma_max)
