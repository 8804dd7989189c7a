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
    TypeAdapter,
    ValidationError,
    model_validator,
)

from undust.errors import UndustError, demand
from undust.formats.files import expanded
from undust.networks.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from undust.regular import read_text

Place = Annotated[Path, AfterValidator(expanded)]


class Table(BaseModel):
    """One table of a recipe: frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Table):
    """Which pictures, how large, and in what order they are drawn."""

    folder: Place = Field(description="pictures and metadata.jsonl")
    size: int = Field(gt=0, description="pictures are resized and centre-cropped to this, pixels")
    crop: int | None = Field(
        default=None, gt=0, description="train on random crops of this many pixels"
    )
    draw_by: Literal["concept", "picture"] = Field(
        default="picture", description="an epoch shows every picture once, or every concept once"
    )
    on_error: Literal["refuse", "skip"] = "refuse"


class Optimizer(Table):
    """AdamW (Loshchilov & Hutter 2019), or Muon (Jordan et al. 2024) for all but the ends.

    The rate warms up, stays, and cools down linearly.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(gt=0)
    betas: tuple[float, float] = Field(default=(0.9, 0.99), description="AdamW's")
    weight_decay: float = Field(default=0.0, ge=0)
    warm_up: int = Field(default=0, ge=0, description="steps of linear rise at the start")
    cool_down: int = Field(default=0, ge=0, description="steps of linear fall to zero at the end")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of `step` (from 0) in a run of `steps`."""
        rise = min(1.0, (step + 1) / (self.warm_up + 1))
        fall = min(1.0, (steps - step) / (self.cool_down + 1))
        return self.learning_rate * rise * fall


class Run(Table):
    """How long, how often, how exact."""

    steps: int = Field(gt=0)
    batch: int = Field(gt=0, description="samples a step")
    ema: float = Field(
        default=0.999, ge=0, lt=1, description="decay of the averaged weights; 0: none"
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    log_every: int = Field(default=20, gt=0)
    sample_every: int = Field(default=500, gt=0)
    checkpoint_every: int = Field(default=500, gt=0)
    keep: int = Field(default=3, gt=0, description="newest checkpoints that are kept")


class ReconstructionLoss(Table):
    """Weights of the first stage's loss terms."""

    pixel: Literal["l1", "l2"] = "l1"
    edges: float = Field(default=1.0, ge=0, description="weight of the gradient term, every scale")
    scales: int = Field(
        default=3, gt=0, description="scales of the gradient term, each half the last"
    )
    kl: float = Field(default=1e-6, ge=0)


Template = Annotated[str, Field(pattern=r"^[^{}]*\{\}[^{}]*$", description="words around one {}")]


class Captions(Table):
    """Which captions a picture is shown with, and how they are worded: each time by chance."""

    fields: tuple[str, ...] = Field(
        default=("text",),
        description="one of these that the picture has; named twice, twice as often",
    )
    lists: tuple[str, ...] = Field(
        default=(), description="those that are words between commas: some of them, in any order"
    )
    templates: dict[str, tuple[Template, ...]] = Field(
        default={}, description="ways to say a field, such as 'a picture of {}'; one of them"
    )
    drop: float = Field(default=0.1, ge=0, le=1, description="share trained without a caption")
    vocabulary: int = Field(default=4096, ge=600, description="entries of the byte-pair vocabulary")
    length: int = Field(default=32, ge=4, description="tokens, the two ends included")

    @model_validator(mode="after")
    def _of_these_fields(self) -> Self:
        for key, named in (("lists", self.lists), ("templates", self.templates)):
            for field in named:
                if field not in self.fields:
                    raise ValueError(f"{key} names {field!r}, which is not among the fields")
        return self


Shift = Annotated[float, Field(ge=1e-3, le=1e3)]


class _Dust(Table):
    """What a mistake costs, by how much dust there was."""

    weighting: str = "uniform"


class _Discrete(_Dust):
    steps: int = Field(default=1000, gt=1)
    zero_terminal_snr: bool = Field(
        default=False, description="stretch the process to end in noise alone"
    )
    prediction: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    shift: Shift = Field(default=1.0, description="above 1, noisier levels are trained more often")


class BetaDust(_Discrete):
    """A discrete process by how its β grows."""

    process: Literal["linear", "scaled-linear", "sigmoid"] = "scaled-linear"
    beta_start: float = Field(default=0.00085, gt=0)
    beta_end: float = Field(default=0.012, gt=0)


class CosineDust(_Discrete):
    """The discrete process whose ᾱ falls as a squared cosine, which has no ends to set."""

    process: Literal["cosine"]


class FlowDust(_Dust):
    """Rectified flow, trained at even times (Liu et al. 2023)."""

    process: Literal["flow"]
    steps: int = Field(default=1000, gt=1, description="what the network is told at the last time")
    prediction: Literal["flow"] = "flow"
    shift: Shift = Field(
        default=1.0, description="above 1, noisier levels are trained, and visited, more often"
    )


class EDMDust(_Dust):
    """EDM: log σ drawn from a normal distribution (Karras et al. 2022, table 1).

    The defaults are theirs, for pictures. Latents that are scaled to deviation 1 are twice as
    strong: sigma_data is 1 then, and the same levels are p_mean −0.5, sigma_min 0.004 and
    sigma_max 160. The weighting "uniform", of F, is their λ(σ) for any sigma_data (eq. 8).
    """

    process: Literal["edm"]
    sigma_min: float = Field(default=0.002, gt=0)
    sigma_max: float = Field(default=80.0, gt=0, allow_inf_nan=False)
    sigma_data: float = Field(
        default=0.5, gt=0, allow_inf_nan=False, description="deviation of the latents"
    )
    p_mean: float = Field(default=-1.2, allow_inf_nan=False)
    p_std: float = Field(default=1.2, gt=0, allow_inf_nan=False)
    prediction: Literal["edm", "v_prediction"] = Field(
        default="edm", description="the network's output F, or −F"
    )


def _usual_process(dust: object) -> object:
    return {"process": "scaled-linear", **dust} if isinstance(dust, dict) else dust


Dust = Annotated[
    BetaDust | CosineDust | FlowDust | EDMDust,
    Field(discriminator="process"),
    BeforeValidator(_usual_process),
]
"""The process, what the network predicts, and what a mistake costs."""


class FirstStageRecipe(Table):
    """Trains the autoencoder between pictures and latents."""

    kind: Literal["first-stage"]
    seed: int = Field(default=0, ge=0)
    data: Data
    autoencoder: AutoencoderConfig
    loss: ReconstructionLoss = ReconstructionLoss()
    optimizer: Optimizer
    run: Run


class DiffusionRecipe(Table):
    """Trains U-Net and text encoder together on the latents of a trained first stage."""

    kind: Literal["diffusion"]
    seed: int = Field(default=0, ge=0)
    first_stage: Place = Field(description="folder of the trained autoencoder")
    data: Data
    captions: Captions = Captions()
    dust: Dust = BetaDust()
    unet: UNetConfig
    text_encoder: TextEncoderConfig
    optimizer: Optimizer
    run: Run
    previews: tuple[str, ...] = Field(default=(), description="prompts painted while it trains")


TrainingRecipe = Annotated[FirstStageRecipe | DiffusionRecipe, Field(discriminator="kind")]


def read(path: Path, changes: Sequence[str] = ()) -> FirstStageRecipe | DiffusionRecipe:
    """The recipe in a TOML file, with changes such as "run.steps=100" applied.

    Raises UndustError for an absent or broken file, an unknown key and a value of the wrong type.
    """
    try:
        tree = tomllib.loads(read_text(path))
    except OSError as error:
        raise UndustError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UndustError(f"{path} is not TOML: {error}") from error
    for change in changes:
        _apply(tree, change)
    return parse(tree, str(path))


def parse(tree: object, where: str) -> FirstStageRecipe | DiffusionRecipe:
    """The recipe in a tree of plain values; `where` names it in errors."""
    try:
        return TypeAdapter[FirstStageRecipe | DiffusionRecipe](TrainingRecipe).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"][1:]]
        said = demand(first)
        if place[:1] == ["dust"] and len(place) > 2:  # the kind of dust stands in between
            said += f", with process {place.pop(1)}"
        said = f"{where}: {'.'.join(place) or 'kind'}: {said}"
        raise UndustError(" ".join(said.split())) from error  # a key can hold line breaks


def _apply(tree: dict[str, object], change: str) -> None:
    """Sets one dotted key of the tree; the value is TOML, or else a plain word."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise UndustError(f"--set {change!r}: expected key=value, such as run.steps=1000")
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text
    *tables, name = key.strip().split(".")
    for table in tables:
        inner = tree.setdefault(table, {})
        if not isinstance(inner, dict):
            raise UndustError(f"--set {change!r}: {table!r} is a value, not a table")
        tree = inner
    tree[name] = value
