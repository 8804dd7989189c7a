"""CFG++: the estimate is guided, the noise that is put back is not."""

from __future__ import annotations

from torch import Tensor

from undust.diffusion.guidance.scales import Table
from undust.errors import UndustError


def cfg_pp(strength: float, sigmas: Tensor) -> Table:
    """The scales with which classifier-free guidance under Euler's method is CFG++.

    Chung et al. 2024, algorithm 2, in x = x0 + σ·n: with the guided estimate g = u + λ·(c − u) of
    the conditional c and the unconditional u, the step goes to g + σ_next·(x − u)/σ. That is
    Euler's step, (1 − r)·x0 + r·x with r = σ_next/σ, towards x0 = u + λ/(1 − r)·(c − u): a larger
    scale at every step but the last. So CFG++ changes no sampler, but it needs to know the step
    that the sampler will take, and this holds for "euler" and "ddim" (η = 0) alone; the estimate
    that such a step shows is the one it heads for, not g.

    strength: λ, 0 … 1; sigmas: the sampler's. There is no neutral λ: even at λ = 1, where g = c,
    the noise is the unconditional one. Raises UndustError for a strength outside 0 … 1.
    """
    if not 0 <= strength <= 1:
        raise UndustError(f"cfg++: {strength} is outside 0 (no prompt) … 1 (the prompt's estimate)")
    here, there = sigmas[:-1].double(), sigmas[1:].double()
    return Table(strength * here / (here - there), sigmas)
