"""Perturbed-attention guidance: away from self-attention in which pixels see only themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from undust.diffusion.guidance.difference import DifferenceGuidance
from undust.diffusion.guidance.registry import GuidanceContext, guidance


@dataclass(frozen=True)
class IdentityMap:
    """The attention map is the identity: every pixel sees only itself."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
        shape: tuple[int, int],
    ) -> Tensor:
        """[B, N, C] → [B, N, C]: the values as they are."""
        del q, k, attend, shape
        return v


@guidance("pag", "around")
class PerturbedAttention(DifferenceGuidance):
    """Away from self-attention that sees only itself (Ahn et al. 2024)."""

    @classmethod
    def build(cls, context: GuidanceContext, *, scale: float = 3.0) -> PerturbedAttention:
        """With the middle block's self-attention perturbed."""
        worse = context.perturbed(IdentityMap())
        return cls(context.denoise, context.positive, worse, scale)
