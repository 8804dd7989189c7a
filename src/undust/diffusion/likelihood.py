"""The likelihood of a picture: the probability flow as a continuous normalising flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from undust.diffusion.noise import uniform
from undust.diffusion.samplers.registry import Denoise, checked_sigmas
from undust.errors import UndustError

Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x [B, …], log σ) -> the flow's slope [B, …] and its divergence [B]."""


def log_likelihood(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    prior: Callable[[Tensor], Tensor],
    *,
    probes: int | None = 1,
    key: int = 0,
) -> Tensor:
    """Log q(x) [B] in nats of x [B, …] at level sigmas[-1], by the flow to sigmas[0] and its prior.

    With u = log σ the flow of seed 001, eq. 6 is dx/du = x − μ, so that along it d log q/du =
    −∇·(x − μ) = tr ∂μ/∂x − D (Song et al. 2021b, eq. 39), integrated together with x by the
    classical Runge-Kutta method.

    sigmas: falling, the last one above 0; prior: x at sigmas[0] -> its log density [B]; probes:
    number of ±1 vectors, drawn from `key` and the same for all steps, that estimate the trace
    (Hutchinson 1989); None for the exact trace, with one gradient for each dimension. Raises
    UndustError for other sigmas and fewer than one probe.
    """
    levels = checked_sigmas(sigmas).flip(0)
    if levels[0] == 0:
        raise UndustError("sigmas: the last one has to be above 0, where a density exists")
    if probes is not None and probes < 1:
        raise UndustError(f"probes: {probes} is too few; at least 1 is needed, or None for all")
    field = _field(denoise, *_directions(x, probes, key))
    total = x.new_zeros(len(x), dtype=torch.float64)
    for u, u_next in pairwise(levels.log()):
        h = u_next - u
        a, da = field(x, u)
        b, db = field(x + h.to(x) / 2 * a, u + h / 2)
        c, dc = field(x + h.to(x) / 2 * b, u + h / 2)
        d, dd = field(x + h.to(x) * c, u_next)
        x = x + h.to(x) / 6 * (a + 2 * b + 2 * c + d)
        total = total + h.to(total) / 6 * (da + 2 * db + 2 * dc + dd)
    return prior(x).double() + total


def isotropic(deviation: float) -> Callable[[Tensor], Tensor]:
    """The log density [B] of a centred isotropic Gaussian."""

    def log_density(x: Tensor) -> Tensor:
        scaled = x.double().flatten(1) / deviation
        return -0.5 * scaled.square().sum(1) - scaled.shape[1] * (
            math.log(deviation) + 0.5 * math.log(2 * math.pi)
        )

    return log_density


def bits_per_dimension(log_likelihood: Tensor, dimensions: int) -> Tensor:
    """Log-likelihood [B] in nats to bits per dimension, lower for likelier pictures."""
    return -log_likelihood / (dimensions * math.log(2))


def _field(denoise: Denoise, directions: Tensor, weight: float) -> Field:
    def field(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        trace = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean = denoise(x, u.exp().to(x).expand(len(x)))
            for v in directions:
                v = v.expand_as(x)
                (row,) = torch.autograd.grad(mean, x, v, retain_graph=True)
                trace += weight * (row * v).flatten(1).sum(1)
        return (x - mean).detach(), x[0].numel() - trace

    return field


def _directions(x: Tensor, count: int | None, key: int) -> tuple[Tensor, float]:
    """Vectors v [N, B or 1, …] and a weight w, such that w·Σ vᵀJv is or estimates the trace of J.

    For a basis it is exact; for vectors of random signs it is so in expectation.
    """
    shape = x.shape[1:]
    if count is None:
        return torch.eye(shape.numel()).to(x).reshape(-1, 1, *shape), 1.0
    counters = torch.tensor([[probe, 0, 0] for probe in range(count)])
    return (uniform(key, counters, x.shape) - 0.5).sign().to(x), 1 / count
