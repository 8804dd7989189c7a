"""The noise process of a training run, and the noise levels at which samples are trained.

To add a process: a subclass of `NoiseConfig` with its keys and `process_of`, and its name in
`AnyNoiseConfig`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from undust.diffusion import registry
from undust.diffusion.process import (
    DISCRETE,
    EDM,
    VE,
    VP,
    ContinuousVP,
    Flow,
    Process,
    SubVP,
    zero_terminal_snr,
)
from undust.diffusion.time_sampling import (
    TIME_SAMPLINGS,
    NoiseLevels,
    lognormal,
    lognormal_times,
    shifted_times,
    uniform_times,
)
from undust.diffusion.weighting import WEIGHTINGS, Weighting
from undust.training.configs import Config

Shift = Annotated[float, Field(ge=1e-3, le=1e3)]
Sigma = Annotated[float, Field(ge=1e-9, le=1e9)]
Beta = Annotated[float, Field(gt=0, lt=1)]
TimeSteps = Annotated[int, Field(ge=2, le=100_000)]
"""Of a process, as many as a scheduler_config.json may have."""


class NoiseLevelsConfig(Config):
    """The noise levels that a model is trained at, and the loss weight by noise level."""

    weighting: str = Field(
        default="uniform",
        description="loss weight at each noise level, with settings as in min-snr:gamma=5",
    )
    times: str | None = Field(
        default=None,
        description="how often each time is trained, as logit-normal:mean=0,deviation=1; "
        "without it evenly, or by the keys of the process",
    )

    def levels(self, process: Process) -> tuple[NoiseLevels, Weighting]:
        """The noise levels to train at, and their loss weight.

        Raises UndustError for names and settings that do not exist.
        """
        weighting = registry.build(WEIGHTINGS, self.weighting, process)
        if self.times is None:
            return self.own_levels(process), weighting
        return registry.build(TIME_SAMPLINGS, self.times, process), weighting

    def own_levels(self, process: Process) -> NoiseLevels:
        """The noise levels to train at, without `times`: even times, of EDM its log-normal σ."""
        return lognormal_times(process) if isinstance(process, EDM) else uniform_times(process)


class NoiseConfig(NoiseLevelsConfig, ABC):
    """The noise process, the prediction of the network, and the loss weight by noise level."""

    @abstractmethod
    def process_of(self) -> Process:
        """The process. Raises UndustError for an impossible one."""

    def build(self) -> tuple[Process, NoiseLevels, Weighting]:
        """The process, the noise levels to train at, and their loss weight.

        Raises UndustError for an impossible process, and for names and settings that do not exist.
        """
        process = self.process_of()
        return process, *self.levels(process)


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

    @model_validator(mode="after")
    def _check_times(self) -> DiscreteNoiseConfig:
        if self.times is not None and self.shift != 1:
            raise ValueError("shift: it has to be left out where times are given")
        return self

    def _ended(self, process: VP) -> Process:
        return zero_terminal_snr(process) if self.zero_terminal_snr else process

    def own_levels(self, process: Process) -> NoiseLevels:
        """Whole time steps, drawn evenly but for `shift`."""
        return shifted_times(process, shift=self.shift)


class BetaNoiseConfig(DiscreteNoiseConfig):
    """A discrete process given by the growth of β."""

    process: Literal["linear", "scaled-linear", "sigmoid"] = Field(
        default="scaled-linear", description="growth of β"
    )
    beta_start: Beta = Field(default=0.00085, description="first β")
    beta_end: Beta = Field(default=0.012, description="last β")

    def process_of(self) -> Process:
        """The process of these β."""
        return self._ended(DISCRETE[self.process](self.steps, self.beta_start, self.beta_end))


class CosineNoiseConfig(DiscreteNoiseConfig):
    """The discrete process whose ᾱ falls as a squared cosine; it has no first and last β to set."""

    process: Literal["cosine"] = Field(description="ᾱ is a squared cosine")

    def process_of(self) -> Process:
        """The process of that many steps."""
        return self._ended(DISCRETE[self.process](self.steps))


class ContinuousNoiseConfig(NoiseConfig):
    """The continuous processes VP and sub-VP, whose β is linear in time (Song et al. 2021b)."""

    process: Literal["vp", "sub-vp"] = Field(description="VP, or sub-VP with less noise in between")
    beta_min: float = Field(default=0.1, gt=0, le=1000, description="β at time 0")
    beta_max: float = Field(default=20.0, gt=0, le=1000, description="β at time 1")
    steps: TimeSteps = Field(default=1000, description="time step of the highest noise level")
    prediction: Literal["epsilon", "sample", "v_prediction", "score"] = Field(
        default="epsilon", description="output of the network"
    )

    def process_of(self) -> Process:
        """The process."""
        kind = {"vp": ContinuousVP, "sub-vp": SubVP}[self.process]
        return kind(self.beta_min, self.beta_max, self.steps)


class VENoiseConfig(NoiseConfig):
    """Variance exploding, log σ linear in time (Song et al. 2021b)."""

    process: Literal["ve"] = Field(description="variance exploding")
    sigma_min: Sigma = Field(default=0.01, description="lowest σ")
    sigma_max: Sigma = Field(default=50.0, description="highest σ")
    prediction: Literal["epsilon", "sample", "v_prediction", "score"] = Field(
        default="epsilon", description="output of the network"
    )

    def process_of(self) -> Process:
        """The process."""
        return VE(self.sigma_min, self.sigma_max)


class FlowNoiseConfig(NoiseConfig):
    """Rectified flow, trained at evenly drawn times (Liu et al. 2023)."""

    process: Literal["flow"] = Field(description="rectified flow")
    steps: TimeSteps = Field(default=1000, description="time step of the highest noise level")
    prediction: Literal["flow", "sample", "v_prediction"] = Field(
        default="flow", description="output of the network"
    )
    shift: Shift = Field(
        default=1.0, description="above 1, higher noise levels are trained and sampled more often"
    )

    def process_of(self) -> Process:
        """The flow; times are drawn before the shift."""
        return Flow(self.shift, self.steps)


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
    p_mean: float = Field(
        default=-1.2, ge=-20, le=20, description="mean of log σ in training, without times"
    )
    p_std: float = Field(
        default=1.2, gt=0, le=20, description="standard deviation of log σ in training"
    )
    prediction: Literal["edm", "v_prediction", "sample", "epsilon"] = Field(
        default="edm", description="output of the network: F, or −F, the clean latents, the noise"
    )

    def process_of(self) -> Process:
        """The process."""
        return EDM(self.sigma_min, self.sigma_max, self.sigma_data)

    def own_levels(self, process: Process) -> NoiseLevels:  # noqa: ARG002
        """Log-normal noise levels."""
        return lambda uniform: lognormal(uniform, self.p_mean, self.p_std)


def _default_process(table: object) -> object:
    return {"process": "scaled-linear", **table} if isinstance(table, dict) else table


AnyNoiseConfig = Annotated[
    BetaNoiseConfig
    | CosineNoiseConfig
    | ContinuousNoiseConfig
    | VENoiseConfig
    | FlowNoiseConfig
    | EDMNoiseConfig,
    Field(discriminator="process"),
    BeforeValidator(_default_process),
]
"""The noise processes that can be trained, chosen by `process`."""
