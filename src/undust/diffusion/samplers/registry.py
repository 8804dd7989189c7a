"""The interface of samplers and their registry.

A sampler is a generator function (denoise, x, sigmas, noise, **options) that yields a SamplerStep
for each step. It solves seed 001, eq. 6, dx = (x − μ)/σ dσ, where μ is the denoiser's estimate, or
a stochastic equation with the same distribution at every σ.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from undust.diffusion.aliases import ALSO_SAMPLERS, FROM_SAMPLERS
from undust.diffusion.process.base import SIGMA_INF
from undust.diffusion.registry import Registry
from undust.errors import UndustError, unknown

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x [B, …], σ) -> x0 [B, …]; σ is [B] for callers, a scalar inside a sampler."""

Noise = Callable[[Tensor, Tensor], Tensor]
"""(σ, σ_next) -> unit normal numbers like x."""


@dataclass(frozen=True)
class SamplerStep:
    """One step of a sampler.

    index: counts from 0; sigma: the level reached, sigmas[index + 1], a float64 scalar; x: the
    latent at that level [B, …]; x0: the clean estimate used for the step [B, …].

    Samplers that use only the ends of the list (adaptive ones and dpm-fast) stop at other levels:
    sigmas[index + 1] is then the last level of the list reached or passed, and index is −1 before
    the first. The last step always has the index len(sigmas) − 2. In an adaptive sampler pictures
    take different steps; sigma is the highest level of them all.
    """

    index: int
    sigma: Tensor
    x: Tensor
    x0: Tensor


@dataclass(frozen=True)
class Sampler:
    """A registered sampler; for n levels σ it yields n − 1 steps.

    order: order of convergence, with noise that of the distribution (weak order); 0 for distilled
    models, where more steps do not help; stochastic: whether it draws noise by default; strong:
    order of convergence to the path given by the noise; path: whether its noise should be a
    `BrownianPath`; adaptive: whether it chooses its steps by a bound on the error, to which order
    relates the number of network calls; finite: whether it steps in σ itself, which fails from
    σ = SIGMA_INF: the first step is then Euler's.
    """

    name: str
    order: int
    stochastic: bool
    steps: Callable[..., Iterator[SamplerStep]]
    strong: float | None = None
    path: bool = False
    adaptive: bool = False
    finite: bool = False

    @cached_property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.steps) or "").partition("\n")[0]

    @cached_property
    def options(self) -> dict[str, Any]:
        """The options it takes, with their defaults."""
        parameters = inspect.signature(self.steps).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def __call__(
        self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, **options: Any
    ) -> Iterator[SamplerStep]:
        """Samples from x [B, …] at level sigmas[0] to sigmas[-1], in float32 or finer.

        sigmas: strictly falling, finite, only the last one may be 0. Raises UndustError at once for
        other sigmas and for options it does not have.
        """
        for option in options.keys() - self.options.keys():
            raise unknown(f"option of sampler {self.name}", option, self.options)
        sigmas = checked_sigmas(sigmas)
        x = x.to(torch.promote_types(x.dtype, torch.float32))

        def denoise_batch(x: Tensor, sigma: Tensor) -> Tensor:
            return denoise(x, sigma.to(x).expand(len(x)))

        def noise_like(sigma: Tensor, sigma_next: Tensor) -> Tensor:
            return noise(sigma, sigma_next).to(x)

        if self.finite and len(sigmas) > 2 and sigmas[0] > SIGMA_INF / 2:
            return self._after_euler(denoise_batch, x, sigmas, noise_like, **options)
        return self.steps(denoise_batch, x, sigmas, noise_like, **options)

    def _after_euler(
        self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, **options: Any
    ) -> Iterator[SamplerStep]:
        """An Euler step from σ = SIGMA_INF, then this sampler."""
        x0 = denoise(x, sigmas[0])
        x = x0 + (sigmas[1] / sigmas[0]).to(x) * (x - x0)
        yield SamplerStep(0, sigmas[1], x, x0)
        for step in self.steps(denoise, x, sigmas[1:], noise, **options):
            yield replace(step, index=step.index + 1)


def reached(sigmas: Tensor, sigma: Tensor) -> int:
    """The index of a step to any σ: that of the last level reached or passed."""
    return int((sigmas >= sigma).sum()) - 2


def checked_sigmas(sigmas: Tensor) -> Tensor:
    """The levels as float64 on the CPU, to avoid synchronisation with a device."""
    sigmas = sigmas.detach().to("cpu", torch.float64)
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise UndustError(f"sigmas: a list of two or more is needed, not shape {[*sigmas.shape]}")
    if not bool(sigmas.isfinite().all() and (sigmas.diff() < 0).all() and sigmas[-1] >= 0):
        raise UndustError(
            "sigmas: all have to be finite, 0 or above, and each lower than the one before"
        )
    return sigmas


SAMPLERS: Registry[Sampler] = Registry("sampler", FROM_SAMPLERS | ALSO_SAMPLERS)


def sampler(
    name: str,
    *,
    order: int,
    stochastic: bool = False,
    strong: float | None = None,
    path: bool = False,
    adaptive: bool = False,
    finite: bool = False,
) -> Callable[[Callable[..., Iterator[SamplerStep]]], Sampler]:
    """Registers a generator function; its keyword-only arguments become the sampler's options."""

    def register(steps: Callable[..., Iterator[SamplerStep]]) -> Sampler:
        SAMPLERS[name] = Sampler(name, order, stochastic, steps, strong, path, adaptive, finite)
        return SAMPLERS[name]

    return register
