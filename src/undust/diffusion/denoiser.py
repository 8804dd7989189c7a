"""Denoisers: the estimate of the clean picture x0 in x = x0 + σ·n."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from torch import Tensor

from undust.diffusion.prediction import Prediction
from undust.diffusion.process import Process
from undust.diffusion.weighting import Weighting, uniform_weight


class Condition(Protocol):
    """The condition of a batch of pictures; one entry for each picture."""

    def __len__(self) -> int: ...

    def concat(self, other: Self) -> Self:
        """The entries of both, one after the other."""
        ...


class Options(Protocol):
    """Options of a network call that are not data, for all pictures or for each."""

    def started(self) -> Self:
        """For one run, with a memory of its own."""
        ...

    def at(self, sigma: Tensor) -> Self:
        """Those that apply at the noise levels σ [B]."""
        ...

    def concat(self, other: Self) -> Self:
        """For the pictures of both, one after the other."""
        ...


C = TypeVar("C", bound=Condition)
C_contra = TypeVar("C_contra", bound=Condition, contravariant=True)


class Denoiser(Protocol[C_contra]):
    """The interface of models: x = x0 + σ·n to an estimate of x0."""

    def __call__(self, x: Tensor, sigma: Tensor, cond: C_contra, options: Any = None, /) -> Tensor:
        """The estimate of x0 [B, …] for x [B, …] at σ [B] and a condition of length B.

        options: `Options`, or None.
        """
        ...


@dataclass(frozen=True)
class NetworkDenoiser(Generic[C]):
    """A trained network as a denoiser: the μ_t of seed 001, eq. 5, and its score is (μ_t − x)/σ².

    network: (x scaled as the process says [B, …], time step [B] float32, cond) -> output like x,
    and with options as a fourth argument where some are given.
    """

    network: Callable[..., Tensor]
    process: Process
    prediction: Prediction

    def __call__(self, x: Tensor, sigma: Tensor, cond: C, options: Any = None, /) -> Tensor:
        """The estimate of x0 [B, …] for x [B, …], in the wider dtype of x and sigma [B]."""
        level = sigma.reshape(-1, *[1] * (x.ndim - 1))
        timestep = self.process.timestep(sigma).float()
        given = () if options is None else (options.at(sigma),)
        output = self.network(x * self.process.input_scale(level), timestep, cond, *given)
        return self.prediction.to_x0(output, x, level)

    def loss(
        self,
        x0: Tensor,
        noise: Tensor,
        sigma: Tensor,
        cond: C,
        weighting: Weighting = uniform_weight,
        input_noise: Tensor | None = None,
    ) -> Tensor:
        """The training loss [B] of clean pictures x0 [B, …] under unit noise at σ [B].

        The weighted mean squared error of the network's output (Rombach et al. 2022, eq. 3; the
        weighting is γ(t) of seed 001, eq. 3). sigma may have a wider precision than x0, in which
        the time step is computed; input_noise: the noise of the network's input, if it is not that
        of the target.
        """
        timestep = self.process.timestep(sigma).float()
        sigma = sigma.to(x0)
        level = sigma.reshape(-1, *[1] * (x0.ndim - 1))
        given = noise if input_noise is None else input_noise
        x = (x0 + level * given) * self.process.input_scale(level)
        output = self.network(x, timestep, cond).to(x0)
        error = (output - self.prediction.target(x0, noise, level)).square()
        return weighting(sigma, self.prediction) * error.mean(tuple(range(1, x0.ndim)))
