"""Inversion: from a picture to the noise that a deterministic sampler maps to it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from undust.diffusion.samplers.registry import Denoise, SamplerStep, checked_sigmas
from undust.errors import UndustError


def invert(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, iterations: int = 1, tolerance: float = 0.0
) -> Iterator[SamplerStep]:
    """Euler's steps in reverse: from x [B, …] at level sigmas[-1] up to sigmas[0].

    A step from σ down to σ' ends at x' = x + (σ' − σ)·ε(x, σ); going back, x is wanted and x' is
    known: x = x' + (σ − σ')·ε(x, σ), a fixed point. One iteration from x' is DDIM inversion (Song
    et al. 2021a, section 4.3), off by the square of the step; more make it exact (Pan et al. 2023).
    They converge while the guidance is weak: each error is multiplied by (1 − σ'/σ)(1 − J), where
    J ≥ 0 is the denoiser's Jacobian.

    sigmas: falling, as for a sampler; iterations: maximum per step; tolerance: a step ends when no
    number changes by more than this fraction of σ. Yields a SamplerStep for each level reached,
    index counting from 0; the last one's x is the noise, at level sigmas[0].
    Raises UndustError for other sigmas and fewer than one iteration.
    """
    if iterations < 1:
        raise UndustError(f"iterations: {iterations} is too few; at least 1 is needed")
    levels = checked_sigmas(sigmas).flip(0)
    for index, (below, sigma) in enumerate(pairwise(levels)):
        level, known, x0 = sigma.to(x).expand(len(x)), x, x
        for _ in range(iterations):
            x0 = denoise(x, level)
            nearer = known + (1 - below / sigma).to(x) * (x - x0)
            moved = (nearer - x).abs().max()
            x = nearer
            if moved <= tolerance * sigma:
                break
        yield SamplerStep(index, sigma, x, x0)
