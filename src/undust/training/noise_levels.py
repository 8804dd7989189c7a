"""The noise process of a training run, and the noise levels at which samples are trained.

To add a process: a subclass of `NoiseConfig` with its keys and `build`, and its name in
`AnyNoiseConfig`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from torch import Tensor

from undust.diffusion.process import DISCRETE, EDM, VP, Flow, Process, zero_terminal_snr
from undust.diffusion.weighting import lognormal
from undust.training.configs import Config

NoiseLevels = Callable[[Tensor], Tensor]
"""Numbers in (0, 1) -> σ, float64, of the same shape."""

Shift = Annotated[float, Field(ge=1e-3, le=1e3)]
Sigma = Annotated[float, Field(ge=1e-9, le=1e9)]
TimeSteps = Annotated[int, Field(ge=2, le=100_000)]
"""Of a process, as many as a scheduler_config.json may have."""


class NoiseConfig(Config, ABC):
    """The noise process, the prediction of the network, and the loss weight by noise level."""

    weighting: str = Field(default="uniform", description="loss weight at each noise level")

    @abstractmethod
    def build(self) -> tuple[Process, NoiseLevels]:
        """The process, and the noise levels to train at. Raises UndustError for impossible ones."""


class DiscreteNoiseConfig(NoiseConfig):
    """A discrete variance-preserving process."""

    steps: TimeSteps = Field(default=1000, description="time steps of the process")
    zero_terminal_snr: bool = Field(
        default=False, description="rescale the process to end in pure noise"
    )
    prediction: Literal["epsilon", "sample", "v_prediction"] = Field(
        default="epsilon", description="output of the network"
    )
    shift: Shift = Field(
        default=1.0, description="above 1, higher noise levels are trained more often"
    )

    def _build(self, process: VP) -> tuple[Process, NoiseLevels]:
        """The process, and its whole time steps, drawn evenly but for `shift`."""
        discrete = zero_terminal_snr(process) if self.zero_terminal_snr else process

        def at_whole_steps(uniform: Tensor) -> Tensor:
            # Esser et al. 2024, eq. 23: the content that captions decide is decided in high noise.
            shifted = self.shift * uniform / (1 + (self.shift - 1) * uniform)
            return discrete.sigmas[(shifted * discrete.steps).long()]

        return discrete, at_whole_steps


class BetaNoiseConfig(DiscreteNoiseConfig):
    """A discrete process given by the growth of β."""

    process: Literal["linear", "scaled-linear", "sigmoid"] = Field(
        default="scaled-linear", description="growth of β"
    )
    beta_start: float = Field(default=0.00085, gt=0, lt=1, description="first β")
    beta_end: float = Field(default=0.012, gt=0, lt=1, description="last β")

    def build(self) -> tuple[Process, NoiseLevels]:
        """The process, and whole time steps of it."""
        return self._build(DISCRETE[self.process](self.steps, self.beta_start, self.beta_end))


class CosineNoiseConfig(DiscreteNoiseConfig):
    """The discrete process whose ᾱ falls as a squared cosine; it has no first and last β to set."""

    process: Literal["cosine"] = Field(description="ᾱ is a squared cosine")

    def build(self) -> tuple[Process, NoiseLevels]:
        """The process, and whole time steps of it."""
        return self._build(DISCRETE[self.process](self.steps))


class FlowNoiseConfig(NoiseConfig):
    """Rectified flow, trained at evenly drawn times (Liu et al. 2023)."""

    process: Literal["flow"] = Field(description="rectified flow")
    steps: TimeSteps = Field(default=1000, description="time step of the highest noise level")
    prediction: Literal["flow"] = Field(default="flow", description="output of the network")
    shift: Shift = Field(
        default=1.0, description="above 1, higher noise levels are trained and sampled more often"
    )

    def build(self) -> tuple[Process, NoiseLevels]:
        """The flow, and its times, drawn evenly before the shift."""
        flow = Flow(self.shift, self.steps)
        first, last = flow.time_range
        return flow, lambda uniform: flow.sigma(first + (last - first) * uniform)


class EDMNoiseConfig(NoiseConfig):
    """EDM: log σ is drawn from a normal distribution (Karras et al. 2022, table 1).

    The defaults are theirs, for images. Latents with standard deviation 1 have twice the signal:
    sigma_data is 1 then, and the same levels are p_mean −0.5, sigma_min 0.004 and sigma_max 160.
    The weighting "uniform", of F, is their λ(σ) for any sigma_data (eq. 8).
    """

    process: Literal["edm"] = Field(description="EDM")
    sigma_min: Sigma = Field(default=0.002, description="lowest σ of sampling")
    sigma_max: Sigma = Field(default=80.0, description="highest σ of sampling")
    sigma_data: Sigma = Field(default=0.5, description="standard deviation of the latents")
    p_mean: float = Field(default=-1.2, ge=-20, le=20, description="mean of log σ in training")
    p_std: float = Field(
        default=1.2, gt=0, le=20, description="standard deviation of log σ in training"
    )
    prediction: Literal["edm", "v_prediction"] = Field(
        default="edm", description="output of the network: F, or −F"
    )

    def build(self) -> tuple[Process, NoiseLevels]:
        """The process, and log-normal noise levels."""
        process = EDM(self.sigma_min, self.sigma_max, self.sigma_data)
        return process, lambda uniform: lognormal(uniform, self.p_mean, self.p_std)


def _default_process(table: object) -> object:
    return {"process": "scaled-linear", **table} if isinstance(table, dict) else table


AnyNoiseConfig = Annotated[
    BetaNoiseConfig | CosineNoiseConfig | FlowNoiseConfig | EDMNoiseConfig,
    Field(discriminator="process"),
    BeforeValidator(_default_process),
]
"""The noise processes that can be trained, chosen by `process`."""
