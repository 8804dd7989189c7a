"""Adaptive projected guidance: strong guidance without its saturated colours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from undust.diffusion.guidance.base import (
    EvalState,
    Guidance,
    GuidanceRequest,
    Scale,
    checked_scale,
    equals,
)
from undust.diffusion.guidance.registry import GuidanceContext, Limits, guidance
from undust.diffusion.samplers.registry import Denoise
from undust.errors import UndustError


def length(x: Tensor) -> Tensor:
    """The length of each picture of x [B, …] as a vector, [B, 1, …]."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)


def along(x: Tensor, direction: Tensor) -> Tensor:
    """The part of each picture of x [B, …] that is parallel to its direction; 0 if that is 0."""
    unit = direction / length(direction).clamp(min=torch.finfo(direction.dtype).tiny)
    return (x * unit).sum(tuple(range(1, x.ndim)), keepdim=True) * unit


@guidance("apg", "mix")
@dataclass(frozen=True, eq=False)
class Projected(Guidance):
    """Guidance without saturated colours: adaptive projected (Sadat et al. 2024).

    x0 = positive + (scale − 1)·(Δ⊥ + eta·Δ∥), Δ = positive − negative. Before that, `momentum`
    times the last Δ is added to Δ (below 0, a direction that was taken before counts for less), and
    Δ is cut to the length `norm` for each picture. Δ∥ is parallel to `positive`: that part
    saturates, and `eta` is the share of it that is kept.

    eta 1, no norm and momentum 0 is classifier-free guidance, and scale 1 none at all, to the bit.
    Momentum is kept by a `GuidedRun` from call to call, of which some samplers make two a step.
    Raises UndustError for numbers that are not finite, and for a norm that is not above 0.
    """

    positive: Denoise
    negative: Denoise
    scale: Scale
    eta: float = 0.0
    norm: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        checked_scale(self.scale)
        if not (math.isfinite(self.eta) and math.isfinite(self.momentum)):
            raise UndustError(f"apg: eta {self.eta} and momentum {self.momentum} must be finite")
        if self.norm is not None and not 0 < self.norm < math.inf:
            raise UndustError(f"apg: norm {self.norm} has to be above 0; None sets no limit")

    @classmethod
    def build(
        cls,
        context: GuidanceContext,
        *,
        eta: float = 0.0,
        norm: Annotated[float | None, Limits(gt=0)] = None,
        momentum: Annotated[float, Limits(gt=-1, lt=1)] = -0.5,
    ) -> Projected:
        """For the prompt and the negative prompt of a batch."""
        return cls(context.positive, context.negative, context.scale, eta, norm, momentum)

    def estimate(self, at: EvalState) -> GuidanceRequest:
        """Both denoisers, or the positive one alone where there is nothing to push away from."""
        scale = at.scale(self.scale)
        if equals(scale, 1):
            return (yield [self.positive])[0]
        positive, negative = yield [self.positive, self.negative]
        push = positive - negative
        if (self.eta, self.norm, self.momentum) == (1, None, 0):
            return negative + scale * push
        if self.momentum:
            push = at.remember(self, lambda before, push=push: push + self.momentum * before)
        if self.norm is not None:
            push = push * (self.norm / length(push)).clamp(max=1)
        return positive + (scale - 1) * (push - (1 - self.eta) * along(push, positive))
