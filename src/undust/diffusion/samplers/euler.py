"""Euler's method, plain and with fresh noise: four published samplers with one kind of step.

In the coordinate x = x0 + σ·n, x moves along a straight line towards the estimate of x0, so a step
is exact for a constant estimate. A stochastic step goes below its target and adds new noise:
σ_next² = down² + up².
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

from torch import Tensor

from undust.diffusion.samplers.registry import Denoise, Noise, SamplerStep, sampler
from undust.errors import UndustError

Split = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(σ, σ_next) -> (down, up): the level after the step, and the scale of the noise added then."""
Refine = Callable[[Denoise, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(denoise, x, x0, σ, down) -> a refined estimate for the step from σ to down; x0 is that at x."""


def euler_step(x: Tensor, x0: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Euler's step along seed 001, eq. 6: dx = (x − x0)/σ dσ from σ to σ_next; x0 itself at 0."""
    return x0 + expand_like(sigma_next / sigma, x) * (x - x0)


def expand_like(number: Tensor, x: Tensor) -> Tensor:
    """A scalar, or numbers [B] reshaped to broadcast with x [B, …]."""
    return number if number.ndim == 0 else number.to(x).reshape(-1, *[1] * (x.ndim - 1))


def deterministic_split(sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
    """The split of a step without noise."""
    return sigma_next, 0 * sigma


def _posterior(sigma: Tensor, sigma_next: Tensor, eta: float = 1.0) -> tuple[Tensor, Tensor]:
    """The split of Song et al. 2021a, eq. 16; with η = 1 that of q(x_next | x, x0)."""
    up = eta * sigma_next * (1 - (sigma_next / sigma) ** 2).sqrt()
    return (sigma_next**2 - up**2).sqrt(), up


def _forward(sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior's mean with the forward step's own variance β (Ho et al. 2020, §3.2).

    β = 1 − ᾱ/ᾱ_next, divided by ᾱ_next = 1/(1 + σ_next²) for this coordinate.
    """
    down, _ = _posterior(sigma, sigma_next)
    beta = (sigma**2 - sigma_next**2) / (1 + sigma**2)
    return down, (beta * (1 + sigma_next**2)).sqrt()


def one_step_solver(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    split: Split,
    refine: Refine | None = None,
) -> Iterator[SamplerStep]:
    """Steps to the levels of `split`, each followed by its noise.

    A step to x0 needs no refinement: it is always Euler's.
    """
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        down, up = split(sigma, sigma_next)
        if refine is not None and down > 0:
            x0 = refine(denoise, x, x0, sigma, down)
        x = euler_step(x, x0, sigma, down)
        if sigma_next > 0 and up > 0:
            x = x + up * noise(sigma, sigma_next)
        yield SamplerStep(index, sigma_next, x, x0)


def ancestral(eta: float) -> Split:
    """The posterior's split with its noise scaled by eta; UndustError for an eta outside 0 … 1."""
    if not 0 <= eta <= 1:
        raise UndustError(f"eta: {eta} is outside 0 (no fresh noise) … 1 (maximal)")
    return partial(_posterior, eta=eta)


@sampler("euler", order=1)
def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[SamplerStep]:
    """Euler's method (Karras et al. 2022, algorithm 1 without its second half)."""
    return one_step_solver(denoise, x, sigmas, noise, ancestral(0.0))


@sampler("ddim", order=1)
def ddim(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, eta: float = 0.0
) -> Iterator[SamplerStep]:
    """Euler's method with noise of the given eta, by its first name (Song et al. 2021a)."""
    return one_step_solver(denoise, x, sigmas, noise, ancestral(eta))


@sampler("euler-ancestral", order=1, stochastic=True, strong=1.0)
def euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, eta: float = 1.0
) -> Iterator[SamplerStep]:
    """Euler's method with fresh noise (k-diffusion); equal to ddim with eta 1."""
    return one_step_solver(denoise, x, sigmas, noise, ancestral(eta))


@sampler("ddpm", order=1, stochastic=True, strong=1.0)
def ddpm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, variance: str = "small"
) -> Iterator[SamplerStep]:
    """DDPM's ancestral sampling (Ho et al. 2020, algorithm 2); variance "small" or "large"."""
    splits: dict[str, Split] = {"small": _posterior, "large": _forward}
    if variance not in splits:
        raise UndustError(f"variance: '{variance}' is neither 'small' nor 'large'")
    return one_step_solver(denoise, x, sigmas, noise, splits[variance])
