"""Training recipes: typed TOML. A key that does not exist is refused by name."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from undust.errors import UndustError
from undust.formats.files import expanded
from undust.networks.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from undust.regular import read_text
from undust.training.config_keys import fault

STEPS = 10**9  # of a run, at most
Place = Annotated[Path, AfterValidator(expanded)]


class Config(BaseModel):
    """One table of a recipe: frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Config):
    """Which pictures, how large, and in what order they are drawn."""

    folder: Place = Field(description="pictures, with captions beside them or in metadata")
    size: int = Field(
        gt=0, le=2**15, description="pictures are resized and centre-cropped to this, pixels"
    )
    crop: int | None = Field(
        default=None, gt=0, description="train on random crops of this many pixels"
    )
    draw_by: Literal["concept", "picture"] = Field(
        default="picture", description="an epoch shows every picture once, or every concept once"
    )
    on_error: Literal["refuse", "skip"] = Field(
        default="refuse", description="what is done with a picture that cannot be read"
    )


def _steps_or_share(value: float) -> float:
    if 1 <= value != int(value):
        raise ValueError("has to be a whole number of steps, or below 1: a share of the run")
    return int(value) if value == int(value) else value


Part = Annotated[
    float,
    Field(ge=0, le=STEPS),
    AfterValidator(_steps_or_share),
    PlainSerializer(lambda part: part),  # 50 stays 50, not 50.0
]
"""A number of steps; below 1, a share of the run's."""
Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter 2019), or Muon (Jordan et al. 2024) for all but the ends.

    The rate warms up, stays, and cools down linearly.
    """

    kind: Literal["adamw", "muon"] = Field(default="adamw", description="the method")
    learning_rate: float = Field(gt=0, description="the rate between warm-up and cool-down")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.99), description="AdamW's")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's, times the rate")
    warm_up: Part = Field(
        default=0, description="steps of linear rise at the start; below 1, a share of run.steps"
    )
    cool_down: Part = Field(
        default=0, description="steps of linear fall at the end; below 1, a share of run.steps"
    )
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")

    def ramps(self, steps: int) -> tuple[int, int]:
        """Steps of warm-up and of cool-down in a run of `steps`."""
        up, down = (
            round(part * steps) if part < 1 else int(part)
            for part in (self.warm_up, self.cool_down)
        )
        return up, down

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of `step` (from 0) in a run of `steps`."""
        up, down = self.ramps(steps)
        rise = min(1.0, (step + 1) / (up + 1))
        fall = min(1.0, (steps - step) / (down + 1))
        return self.learning_rate * rise * fall


class RunConfig(Config):
    """How long, how often, how exact."""

    steps: int = Field(gt=0, le=STEPS, description="steps of the whole run")
    batch: int = Field(gt=0, le=2**20, description="samples a step")
    ema: float = Field(
        default=0.999, ge=0, lt=1, description="decay of the averaged weights; 0: none"
    )
    precision: Literal["fp32", "bf16", "auto"] = Field(
        default="fp32", description="of the computation; auto: bf16 where that is faster, measured"
    )
    muon_precision: Literal["fp32", "bf16", "auto"] = Field(
        default="auto", description="of Muon's orthogonalisation; auto: the faster one, measured"
    )
    log_every: int = Field(default=20, gt=0, description="steps from one log line to the next")
    sample_every: int = Field(default=500, gt=0, description="steps between two previews")
    checkpoint_every: int = Field(default=500, gt=0, description="steps between two checkpoints")
    keep: int = Field(default=3, gt=0, description="newest checkpoints that are kept")


class ReconstructionLossConfig(Config):
    """Weights of the first stage's loss terms."""

    pixel: Literal["l1", "l2"] = Field(default="l1", description="the pixels' distance")
    edges: float = Field(default=1.0, ge=0, description="weight of the gradient term, every scale")
    scales: int = Field(
        default=3, gt=0, description="scales of the gradient term, each half the last"
    )
    kl: float = Field(default=1e-6, ge=0, description="weight of the KL term")


def _around_one(template: str) -> str:
    if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
        raise ValueError("has to have {} once, where the caption goes, and no other brace")
    return template


Template = Annotated[str, AfterValidator(_around_one)]
"""TextConditioner around one {}."""


class CaptionsConfig(Config):
    """Which captions a picture is shown with, and how they are worded: each time by chance."""

    fields: tuple[str, ...] = Field(
        default=("text",),
        description="one of these columns that the picture has; named twice, twice as often; "
        "[]: trained without captions",
    )
    lists: tuple[str, ...] = Field(
        default=(), description="those that are words between commas: some of them, in any order"
    )
    templates: dict[str, tuple[Template, ...]] = Field(
        default={}, description="ways to say a field, such as 'a picture of {}'; one of them"
    )
    drop: float = Field(default=0.1, ge=0, le=1, description="share trained without a caption")
    vocabulary: int = Field(
        default=4096, ge=600, le=2**20, description="entries of the byte-pair vocabulary"
    )
    length: int = Field(default=32, ge=4, le=2**16, description="tokens, the two ends included")

    @model_validator(mode="after")
    def _of_these_fields(self) -> Self:
        for key, named in (("lists", self.lists), ("templates", self.templates)):
            for field in named:
                if field not in self.fields:
                    raise ValueError(f"{key} names {field!r}, which is not among the fields")
        return self


Shift = Annotated[float, Field(ge=1e-3, le=1e3)]
Sigma = Annotated[float, Field(ge=1e-9, le=1e9)]


Levels = Annotated[int, Field(ge=2, le=100_000)]
"""Time steps of a process, as many as a scheduler_config.json may have."""


class NoiseConfig(Config):
    """The loss weight, by noise level."""

    weighting: str = Field(default="uniform", description="weight of the error at each noise level")


class _DiscreteNoiseConfig(NoiseConfig):
    steps: Levels = Field(default=1000, description="time steps of the process")
    zero_terminal_snr: bool = Field(
        default=False, description="stretch the process to end in noise alone"
    )
    prediction: Literal["epsilon", "sample", "v_prediction"] = Field(
        default="epsilon", description="the network's output"
    )
    shift: Shift = Field(default=1.0, description="above 1, noisier levels are trained more often")


class BetaNoiseConfig(_DiscreteNoiseConfig):
    """A discrete process by how its β grows."""

    process: Literal["linear", "scaled-linear", "sigmoid"] = Field(
        default="scaled-linear", description="how β grows"
    )
    beta_start: float = Field(default=0.00085, gt=0, lt=1, description="the first β")
    beta_end: float = Field(default=0.012, gt=0, lt=1, description="the last β")


class CosineNoiseConfig(_DiscreteNoiseConfig):
    """The discrete process whose ᾱ falls as a squared cosine, which has no ends to set."""

    process: Literal["cosine"] = Field(description="ᾱ is a squared cosine")


class FlowNoiseConfig(NoiseConfig):
    """Rectified flow, trained at even times (Liu et al. 2023)."""

    process: Literal["flow"] = Field(description="rectified flow")
    steps: Levels = Field(default=1000, description="the time step at the noisiest level")
    prediction: Literal["flow"] = Field(default="flow", description="the network's output")
    shift: Shift = Field(
        default=1.0, description="above 1, noisier levels are trained, and visited, more often"
    )


class EDMNoiseConfig(NoiseConfig):
    """EDM: log σ drawn from a normal distribution (Karras et al. 2022, table 1).

    The defaults are theirs, for pictures. Latents that are scaled to deviation 1 are twice as
    strong: sigma_data is 1 then, and the same levels are p_mean −0.5, sigma_min 0.004 and
    sigma_max 160. The weighting "uniform", of F, is their λ(σ) for any sigma_data (eq. 8).
    """

    process: Literal["edm"] = Field(description="EDM")
    sigma_min: Sigma = Field(default=0.002, description="the least σ of sampling")
    sigma_max: Sigma = Field(default=80.0, description="the largest σ of sampling")
    sigma_data: Sigma = Field(default=0.5, description="deviation of the latents")
    p_mean: float = Field(default=-1.2, ge=-20, le=20, description="mean of the log σ trained on")
    p_std: float = Field(default=1.2, gt=0, le=20, description="deviation of the log σ trained on")
    prediction: Literal["edm", "v_prediction"] = Field(
        default="edm", description="the network's output F, or −F"
    )


def _usual_process(dust: object) -> object:
    return {"process": "scaled-linear", **dust} if isinstance(dust, dict) else dust


Dust = Annotated[
    BetaNoiseConfig | CosineNoiseConfig | FlowNoiseConfig | EDMNoiseConfig,
    Field(discriminator="process"),
    BeforeValidator(_usual_process),
]
"""The process, what the network predicts, and what a mistake costs."""


class TrainingConfig(Config):
    """The keys that both kinds of recipe have."""

    seed: int = Field(default=0, ge=0, lt=2**64, description="of all random numbers of the run")
    data: DataConfig
    optimizer: OptimizerConfig
    run: RunConfig

    @model_validator(mode="after")
    def _ramps_fit(self) -> Self:
        steps = self.run.steps
        up, down = self.optimizer.ramps(steps)
        if up + down > steps:
            fits = (
                f"optimizer.cool_down = {steps - up} would fit, or "
                if up < steps
                else f"optimizer.warm_up = {steps - down} would fit, or "
                if down < steps
                else ""
            )
            raise ValueError(
                f"optimizer.warm_up ({up:,} steps) and optimizer.cool_down ({down:,} steps) are "
                f"longer than the run (run.steps = {steps:,}): its learning rate would never be "
                f"reached; {fits}shares of the run do, such as 0.05 and 0.45"
            )
        return self


class FirstStageConfig(TrainingConfig):
    """Trains the autoencoder between pictures and latents."""

    kind: Literal["first-stage"] = Field(description="what is trained")
    autoencoder: AutoencoderConfig
    loss: ReconstructionLossConfig = ReconstructionLossConfig()

    @model_validator(mode="after")
    def _can_be_published(self) -> Self:
        own = self.autoencoder
        for name in ("in_channels", "out_channels"):
            if getattr(own, name) != 3:
                raise ValueError(f"autoencoder.{name} has to be 3: pictures are read as RGB")
        # The latents' mean and deviation are folded into these convolutions.
        for name in ("use_quant_conv", "use_post_quant_conv"):
            if not getattr(own, name):
                raise ValueError(f"autoencoder.{name} has to be true: it normalises the latents")
        for name in ("shift_factor", "latents_mean", "latents_std"):
            if getattr(own, name) is not None:
                raise ValueError(f"autoencoder.{name} has to be left out: latents are normalised")
        return self


class DiffusionConfig(TrainingConfig):
    """Trains U-Net and text encoder together on the latents of a trained first stage."""

    kind: Literal["diffusion"] = Field(description="what is trained")
    first_stage: Place = Field(
        description="the trained autoencoder: its folder, that of its run or of a model, a file, "
        "or a model's name"
    )
    captions: CaptionsConfig = CaptionsConfig()
    dust: Dust = BetaNoiseConfig()
    unet: UNetConfig
    text_encoder: TextEncoderConfig
    previews: tuple[str, ...] = Field(default=(), description="prompts of the previews")

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        if self.unet.addition_embed_type == "text_time" or self.unet.num_class_embeds is not None:
            name = "num_class_embeds" if self.unet.num_class_embeds else "addition_embed_type"
            raise ValueError(f"unet.{name}: a U-Net is trained here on text alone; leave it out")
        if self.text_encoder.projects:
            raise ValueError("text_encoder.architectures has to be left out: CLIPTextModel")
        return self


TrainingRecipe = Annotated[FirstStageConfig | DiffusionConfig, Field(discriminator="kind")]
KINDS = {"first-stage": FirstStageConfig, "diffusion": DiffusionConfig}


def read(path: Path, changes: Sequence[str] = ()) -> FirstStageConfig | DiffusionConfig:
    """The recipe in a TOML file, with changes such as "run.steps=100" applied.

    Raises UndustError for an absent or broken file, an unknown key and a value of the wrong type.
    """
    try:
        tree = tomllib.loads(read_text(path))
    except OSError as error:
        raise UndustError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also a number of too many digits
        raise UndustError(f"{path} is not TOML: {error}") from error
    for change in changes:
        _apply(tree, change)
    return parse(tree, str(path))


def parse(tree: object, where: str) -> FirstStageConfig | DiffusionConfig:
    """The recipe in a tree of plain values; `where` names it in errors."""
    try:
        return TypeAdapter[FirstStageConfig | DiffusionConfig](TrainingRecipe).validate_python(tree)
    except ValidationError as error:
        raise UndustError(f"{where}: {fault(error, tree, KINDS)}") from error


def _apply(tree: dict[str, object], change: str) -> None:
    """Sets one dotted key of the tree; the value is TOML, or else a plain word."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise UndustError(f"--set {change!r}: expected key=value, such as run.steps=1000")
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    *tables, name = key.strip().split(".")
    for table in tables:
        inner = tree.setdefault(table, {})
        if not isinstance(inner, dict):
            raise UndustError(f"--set {change!r}: {table!r} is a value, not a table")
        tree = inner
    tree[name] = value
