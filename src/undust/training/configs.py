"""The tables that every kind of training has in its recipe, typed.

Unknown keys are refused by name. The tables of a single kind are in the module that they configure:
`first_stage`, `diffusion`, `captions`, `noise_levels`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from undust.formats.files import expanded
from undust.networks import dtype_and_device

MAX_STEPS = 10**9
DEFAULT_RATIO = 2.0  # of a bucket's sides


def _filled(path: object) -> object:
    """The value. One of no letters, as of an unset variable, would be the working folder."""
    if path == "":
        raise ValueError("is empty; the working folder is .")
    return path


Place = Annotated[Path, AfterValidator(expanded), BeforeValidator(_filled)]


class Config(BaseModel):
    """One table of a recipe: immutable, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Config):
    """Training pictures, their size, and the order in which they are drawn."""

    source: str = Field(default="folder", description="kind of data source")
    folder: Place = Field(
        description="pictures with captions: a folder, tars or Parquet; data.md has the layouts"
    )
    size: int = Field(
        gt=0, le=2**15, description="pictures are resized and centre-cropped to this, pixels"
    )
    buckets: bool = Field(
        default=False,
        description="keep the shapes of pictures: each is resized to the nearest of several sizes "
        "with the area of size², and a batch is of one of them; of diffusion models",
    )
    max_ratio: float = Field(
        default=DEFAULT_RATIO,
        ge=1,
        le=16,
        description="longer side of a bucket, divided by its shorter one",
    )
    crop: int | None = Field(
        default=None,
        gt=0,
        description="train on random crops of this many pixels; of a first stage",
    )
    crops: int = Field(
        default=1,
        ge=1,
        le=64,
        description="crops of a picture along its longer side, evenly spread, of which one is "
        "drawn each time; 1: its middle",
    )
    flip: bool = Field(
        default=False, description="mirror half of the pictures, left to right, drawn each time"
    )
    limit: int = Field(
        default=0,
        ge=0,
        description="number of training pictures or films to use at most, chosen by name; 0: all",
    )
    draw_by: Literal["concept", "picture"] = Field(
        default="picture", description="an epoch has every picture once, or every concept once"
    )
    on_error: Literal["refuse", "skip"] = Field(
        default="refuse",
        description="refuse or skip pictures that cannot be read, or lack a map of the recipe",
    )
    held_out: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the concepts held out for the validation loss, chosen by name; 0: "
        "the data's split validation, else test",
    )

    @model_validator(mode="after")
    def _ratio_of_buckets(self) -> Self:
        if self.max_ratio != DEFAULT_RATIO and not self.buckets:
            raise ValueError("max_ratio is of buckets; set buckets = true, or leave it out")
        return self


def _steps_or_share(value: float) -> float:
    if 1 <= value != int(value):
        raise ValueError("has to be a whole number of steps, or below 1: a share of the run")
    return int(value) if value == int(value) else value


StepsOrShare = Annotated[
    float,
    Field(ge=0, le=MAX_STEPS),
    AfterValidator(_steps_or_share),
    PlainSerializer(lambda value: value),  # 50 stays 50, not 50.0
]
"""A number of steps; below 1, a share of the run."""
Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter 2019), or Muon (Jordan et al. 2024) for the hidden matrices.

    The learning rate rises linearly in the warm-up, then follows its schedule: trapezoid (constant,
    with a linear fall in the cool-down), constant, cosine or linear (to 0 at the end).
    """

    kind: Literal["adamw", "muon", "adamw-8bit"] = Field(
        default="adamw", description="method; adamw-8bit keeps its moments in 8 bits, with torchao"
    )
    learning_rate: float = Field(gt=0, description="learning rate between warm-up and cool-down")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.99), description="β₁ and β₂ of AdamW")
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled weight decay, times the learning rate"
    )
    schedule: Literal["trapezoid", "constant", "cosine", "linear"] = Field(
        default="trapezoid", description="learning rate after the warm-up"
    )
    warm_up: StepsOrShare = Field(
        default=0, description="steps of linear rise at the start; below 1, a share of run.steps"
    )
    cool_down: StepsOrShare = Field(
        default=0,
        description="steps of linear fall at the end of a trapezoid; below 1, a share of run.steps",
    )
    clip: float = Field(default=1.0, gt=0, description="maximum norm of the gradient")

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
        left = (steps - step) / max(1, steps - up)  # of the part after the warm-up, at most 1
        fall = {
            "trapezoid": min(1.0, (steps - step) / (down + 1)),
            "constant": 1.0,
            "cosine": (1 - math.cos(math.pi * min(1.0, left))) / 2,
            "linear": min(1.0, left),
        }[self.schedule]
        return self.learning_rate * rise * fall

    @model_validator(mode="after")
    def _cools_down(self) -> Self:
        if self.cool_down and self.schedule != "trapezoid":
            raise ValueError(f"cool_down is part of schedule trapezoid, not of {self.schedule}")
        return self


class RunConfig(Config):
    """Length, batch size, precision and output intervals of a run."""

    steps: int = Field(gt=0, le=MAX_STEPS, description="steps of the whole run")
    batch: int = Field(gt=0, le=2**20, description="samples per step")
    accumulate: int = Field(
        default=1,
        gt=0,
        description="parts in which the samples of a step are computed, to save memory",
    )
    checkpoint_activations: bool = Field(
        default=False,
        description="compute the activations of each block twice instead of keeping them",
    )
    compile: bool = Field(
        default=False,
        description="compile the networks of a step with torch.compile, which takes minutes",
    )
    ema: float = Field(
        default=0.999, ge=0, lt=1, description="decay of the averaged weights; 0: no averaging"
    )
    device: Literal["cpu", "cuda", "mps", "auto"] = Field(
        default="cpu", description="where the networks are trained; auto: an accelerator if any"
    )
    precision: Literal["fp32", "bf16", "fp16", "auto"] = Field(
        default="fp32",
        description="of the computation; auto: bf16 where measured to be faster; fp16 scales the "
        "loss",
    )
    convolutions: Literal["direct", "winograd", "auto"] = Field(
        default="auto",
        description="3×3 convolutions in fp32 on a CPU: as defined, or by Winograd's algorithm, "
        "which is exact but for rounding; auto: the faster one, measured",
    )
    muon_precision: Literal["fp32", "bf16", "auto"] = Field(
        default="auto", description="of Muon's orthogonalisation; auto: the faster one, measured"
    )
    snapshot_every: int = Field(
        default=0,
        ge=0,
        description="steps between snapshots of two averages, from which undust ema makes one of "
        "any length; 0: none",
    )
    log_every: int = Field(default=20, gt=0, description="steps between log lines")
    sample_every: int = Field(default=500, gt=0, description="steps between previews")
    validate_every: int = Field(
        default=500, gt=0, description="steps between validation losses, if pictures are held out"
    )
    patience: int = Field(
        default=0,
        ge=0,
        description="validations without a lower loss after which the run stops; the published "
        "model is then that of the lowest one; 0: never",
    )
    checkpoint_every: int = Field(default=500, gt=0, description="steps between checkpoints")
    keep: int = Field(default=3, gt=0, description="number of newest checkpoints to keep")

    @property
    def place(self) -> torch.device:
        """The device. Raises UndustError for one that is not available."""
        if self.device == "auto":
            found = torch.accelerator.current_accelerator(check_available=True)
            return found or torch.device("cpu")
        return dtype_and_device.device(self.device)
