"""Orders of convergence and float64 tensors, in a word each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

import convergence
from convergence import GAUSSIAN, MIXTURE, BrownianCase, impulses, weak_errors

DEVIATION = GAUSSIAN.deviations.item()


def doubles(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def fitted(errors: Callable[[int], float], steps: Sequence[int]) -> float:
    """The power of 1/steps with which the error falls."""
    return convergence.fitted([(count, errors(count)) for count in steps])


@cache
def mixture() -> BrownianCase:
    return BrownianCase(MIXTURE)


def flow_order(name: str, steps: Sequence[int] = (32, 64, 128), **options: Any) -> float:
    """Of a deterministic sampler, by where it ends."""
    return convergence.fitted(mixture().flow_errors(name, steps, **options))


def weak_order(name: str, steps: Sequence[int] = (32, 64, 128), **options: Any) -> float:
    """Of a stochastic sampler, by the mean and the variance of a Gaussian."""
    return convergence.fitted(weak_errors(name, steps, **options))


def variance(name: str, sigmas: Tensor, **options: Any) -> float:
    """What a sampler ends with on a Gaussian of deviation DEVIATION; no random numbers."""
    _, own, shares = impulses(name, sigmas, None, **options)
    start = DEVIATION**2 + sigmas[0] ** 2
    return (own**2 * start + shares.square().sum()).item()
