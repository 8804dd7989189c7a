"""CFG++: the estimate is guided, the noise that is put back is not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from torch import Tensor

from undust.diffusion.guidance.registry import GuidanceContext, Limits, guidance
from undust.diffusion.guidance.scales import ScaleTable
from undust.errors import UndustError


@guidance("cfg++", "scale", samplers=("ddim", "euler"))
@dataclass(frozen=True, eq=False)
class CFGPlusPlus:
    """Guided estimate, unguided noise (Chung et al. 2024); for euler and ddim.

    The scales with which classifier-free guidance under Euler's method is their algorithm 2. In
    x = x0 + σ·n, with the guided estimate g = u + λ·(c − u) of the conditional c and the
    unconditional u, the step goes to g + σ_next·(x − u)/σ. That is Euler's step,
    (1 − r)·x0 + r·x with r = σ_next/σ, towards x0 = u + λ/(1 − r)·(c − u): a larger scale at every
    step but the last. So CFG++ changes no sampler, but it needs to know the step that the sampler
    will take, and this holds for "euler" and "ddim" (η = 0) alone; the estimate that such a step
    shows is x0, not g.

    strength: λ, 0 … 1; sigmas: the sampler's. There is no neutral λ: even at λ = 1, where g = c,
    the noise is the unconditional one. Raises UndustError for a strength outside 0 … 1.
    """

    strength: float
    sigmas: Tensor

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UndustError(
                f"cfg++: {self.strength} is outside 0 (no prompt) … 1 (the prompt's estimate)"
            )

    @classmethod
    def build(
        cls, context: GuidanceContext, *, scale: Annotated[float, Limits(ge=0, le=1)] = 0.6
    ) -> CFGPlusPlus:
        """For the steps of a batch; scale: λ, in the place of the guidance scale."""
        return cls(scale, context.sigmas)

    @cached_property
    def table(self) -> ScaleTable:
        """The scale of each step."""
        here, there = self.sigmas[:-1].double(), self.sigmas[1:].double()
        return ScaleTable(self.strength * here / (here - there), self.sigmas)

    def __call__(self, level: float) -> Tensor:
        """The scale of the step that σ = level lies in."""
        return self.table(level)
