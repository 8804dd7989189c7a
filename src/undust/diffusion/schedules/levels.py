"""Schedules that place σ, between the largest and the smallest of a process."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from undust.diffusion.process import Process
from undust.diffusion.schedules.registry import SCHEDULES, ramp, schedule

RHO = 7.0  # Karras et al. 2022, eq. 5
THRESHOLD = 0.025  # the end of Movie Gen's linear half, in rectified flow's time from the noise


def _even(top: float, bottom: float, share: Tensor) -> Tensor:
    return torch.lerp(share.new_tensor(top), share.new_tensor(bottom), share)


def _even_logs(process: Process, share: Tensor) -> Tensor:
    return _even(math.log(process.sigma_max), math.log(process.sigma_min), share).exp()


@schedule("karras")
def karras(process: Process, steps: int, *, rho: float = RHO) -> Tensor:
    """Even in σ^(1/7), with more steps at small σ (Karras et al. 2022, eq. 5)."""
    top, bottom = process.sigma_max ** (1 / rho), process.sigma_min ** (1 / rho)
    return _even(top, bottom, ramp(steps)) ** rho


@schedule("exponential")
def exponential(process: Process, steps: int) -> Tensor:
    """Even in log σ, and so in log-SNR = −2·log σ (Lu et al. 2022a)."""
    return _even_logs(process, ramp(steps))


SCHEDULES["log-snr"] = exponential  # another name of the same levels


@schedule("polyexponential")
def polyexponential(process: Process, steps: int, *, rho: float = 1.0) -> Tensor:
    """Even in a power of log σ, as in k-diffusion: with rho above 1 more small σ."""
    return _even_logs(process, 1 - (1 - ramp(steps)) ** rho)


@schedule("kl-optimal")
def kl_optimal(process: Process, steps: int) -> Tensor:
    """Even in arctan σ, the angle between noise and picture (Sabour et al. 2024, theorem 3.1).

    For pictures of variance 1, Euler's method yields Π cos(step in the angle) of their deviation,
    which is closest to 1 for even steps.
    """
    angle = _even(math.atan(process.sigma_max), math.atan(process.sigma_min), ramp(steps))
    return angle.tan().clamp(max=process.sigma_max)


@schedule("linear-quadratic")
def linear_quadratic(process: Process, steps: int, *, threshold: float = THRESHOLD) -> Tensor:
    """First small even steps of rectified flow's time, then growing ones (Movie Gen 2024).

    In τ = σ/(1 + σ): half of the steps cover the first `threshold` evenly, the others are quadratic
    to 0, with a continuous slope.
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
