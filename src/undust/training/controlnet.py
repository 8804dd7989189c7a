"""Training a ControlNet for a model that exists (Zhang et al. 2023)."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from undust.adapters.control import AppliedControlNet
from undust.conditioning.prompt import escape
from undust.diffusion.denoiser import NetworkDenoiser
from undust.errors import UndustError
from undust.evaluation.figure import Figure
from undust.evaluation.networks import FigureNetworks
from undust.formats import controlnet
from undust.formats.components import save_component
from undust.formats.files import atomic_folder
from undust.generation import loop
from undust.networks.conditioning import CallOptions, Conditioning
from undust.networks.controlnet import ControlNet, check_fits, from_unet
from undust.networks.unet import UNet
from undust.pictures import grid
from undust.pipeline import LatentDiffusion
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.conditions import SHOWN, TrainingCondition
from undust.training.configs import Place
from undust.training.data import Batch, Observe
from undust.training.denoising import PREVIEW_STEPS
from undust.training.existing import ExistingModelConfig, ExistingModelTask
from undust.training.figures import LEAST, SEED, FiguresConfig, real_pictures
from undust.training.hints import HIGH, LOW, HintCondition, HintConfig
from undust.training.sources import TrainingData, content_digest

NOT_MEASURED = "none"


class AgreementConfig(FiguresConfig):
    """Agreement of generated pictures with their hints, of the averaged weights."""

    every: int = Field(default=500, ge=0, description="steps between figures; 0: none")
    pictures: int = Field(default=32, ge=LEAST, description="number of pictures that are generated")
    features: str | None = Field(default=NOT_MEASURED, description="none: not measured here")
    perceptual: str | None = Field(default=NOT_MEASURED, description="none: not measured here")

    @model_validator(mode="after")
    def _agreement_alone(self) -> Self:
        if {self.features, self.perceptual} != {NOT_MEASURED} or self.heads or self.clip:
            raise ValueError(
                "a ControlNet is measured by its agreement with the hints alone; leave out "
                "features, perceptual, heads and clip"
            )
        return self


class ControlNetTrainingConfig(ExistingModelConfig):
    """Trains a ControlNet for a model that exists, which stays as it is."""

    kind: Literal["controlnet"] = Field(description="what is trained")
    condition: HintConfig
    init: Place | None = Field(
        default=None,
        description="a ControlNet to start from, instead of the U-Net's encoder: its folder, its "
        "file or its run",
    )
    figures: AgreementConfig = AgreementConfig()  # pyright: ignore[reportIncompatibleVariableOverride]

    def complete(self) -> Self:
        """With the places of the model, its first stage and the ControlNet to start from.

        Raises UndustError for one that is not found.
        """
        found = super().complete()
        if self.init is None:
            return found
        inner = self.init / "model"
        place = inner if inner.is_dir() else self.init
        if not place.exists():
            raise UndustError(f"init: {self.init} does not exist")
        return found.model_copy(update={"init": place})

    @model_validator(mode="after")
    def _no_prior(self) -> Self:
        if self.prior:
            raise ValueError("prior: a ControlNet leaves the model as it is; leave it out")
        return self

    def network(self, model: LatentDiffusion) -> ControlNet:
        """The ControlNet at the start, in the model's device.

        Raises UndustError for a model that has no U-Net with text or takes further channels, and
        for one to start from that is of another kind of model.
        """
        unet = model.unet
        if not isinstance(unet, UNet):
            raise UndustError(
                f"model: {self.model} has a {type(unet).__name__}; ControlNets are for U-Nets with "
                "text"
            )
        if beside := unet.config.in_channels - model.autoencoder.latent_channels:
            raise UndustError(
                f"model: the U-Net of {self.model} takes {beside} channels beside the latents, for "
                "inpainting, low resolution or an earlier estimate; a ControlNet is trained for a "
                "model without them"
            )
        factor = model.downsampling_factor
        if self.init is None:
            torch.manual_seed(self.seed)
            return from_unet(unet, factor).train()
        try:
            network = controlnet.load(self.init)
            check_fits(network, unet)
            if network.scale != factor:
                raise UndustError(
                    f"the ControlNet is for latents {network.scale} times smaller than pictures, "
                    f"the model's are {factor} times smaller"
                )
        except UndustError as error:
            raise UndustError(f"init: {error}") from error
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()  # not of the file that is mapped
            parameter.requires_grad_()
        return network.to(unet.conv_in.weight.device)

    def task(
        self, out: Path, resumed: TrainingCheckpoint | None, observe: Observe
    ) -> ControlNetTask:
        """The training of the ControlNet."""
        return ControlNetTask(self, out, resumed, observe)


class ControlNetTask(ExistingModelTask):
    """A copy of the U-Net's encoder learns to add to it under hints; the U-Net stays as it is."""

    config: ControlNetTrainingConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        config: ControlNetTrainingConfig,
        out: Path,
        resumed: TrainingCheckpoint | None = None,
        observe: Observe = lambda _done, _all: None,
    ) -> None:
        """As `TrainingConfig.task`. Raises UndustError as `ControlNetTrainingConfig.network`."""
        model = config.loaded()
        self.network = config.network(model)
        inputs = {"init": content_digest(_files(config.init))} if config.init else {}
        super().__init__(
            config,
            out,
            resumed,
            observe,
            model=model,
            modules={"controlnet": self.network},
            text_is_finished=True,
            inputs=inputs,
            maps=[*filter(None, [config.condition.column])],
        )
        self.networks["controlnet"] = self.network
        self._generator = replace(model)

    def conditions_of(self, data: TrainingData, model: LatentDiffusion) -> list[TrainingCondition]:
        """The model's, and the hints."""
        self.hints = HintCondition(self.config.condition, data)
        return [*super().conditions_of(data, model), self.hints]

    def denoiser(self, batch: Batch) -> NetworkDenoiser[Conditioning]:
        """The U-Net with the ControlNet under the batch's hints."""
        hint = self.hints(self.data.views.drawn(batch))
        unet, control = self.model.unet, self.network

        def network(x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
            return unet(x, timestep, cond, control=control(x, timestep, cond, hint))

        return replace(self.denoise, network=network)

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions of the preview's images, below their hints."""
        if not self.text:
            return ()
        prompts = [self.text.first(sample) for sample in self._shown]
        return (*[""] * len(prompts), *prompts)

    def preview(self, *, brief: bool = False) -> Image.Image:
        """Hints, and below each a picture that is generated under it; brief: one, in one step.

        Of held-out samples, if there are any.
        """
        samples = self._shown[: 1 if brief else None]
        hints = [image for sample in samples for image in self.hints.shown(sample)]
        prompts = [escape(self.text.first(sample)) if self.text else "" for sample in samples]
        options = {"steps": 1 if brief else PREVIEW_STEPS}
        pictures = self._generated_under(samples, options, prompts)
        return grid([*hints, *pictures], len(samples))

    @property
    def _shown(self) -> Sequence[int]:
        samples = self.data.held_out or self.data.train
        return samples[:: max(1, len(samples) // SHOWN)][:SHOWN]

    def figures(
        self,
        config: FiguresConfig,
        networks: FigureNetworks,  # noqa: ARG002
    ) -> Callable[[], list[Figure]]:
        """Measures the agreement of generated pictures with the hints of held-out samples.

        The pictures have no captions, which may say as much as the hints. Beside it the agreement
        of the same pictures with each other's hints, which is chance, and that of the model's
        pictures without the ControlNet.
        """
        real, samples = real_pictures(self.data, self.size, config.pictures, held_out=True)
        quantity, unit = self.hints.measure
        count = len(samples)
        # Without a prompt, guidance leads away from what it leads to.
        options = {"steps": config.steps, "guidance": 1.0}

        def figure(values: Tensor, against: str = "") -> Figure:
            return Figure(
                quantity=f"{quantity}{against}",
                value=float(values.mean()),
                error=float(values.std() / count**0.5) if count > 1 else None,
                unit=unit,
                count=count,
                of=real.of,
                size=self.size,
                seed=SEED,
            )

        @cache
        def without() -> Figure:
            images = [*self._generated_under(samples, options, [""] * count, controlled=False)]
            found = self.hints.agreement(images, self.hints.wanted(samples))
            return figure(found, ", without the ControlNet")

        def measured() -> list[Figure]:
            images = [*self._generated_under(samples, options, [""] * count)]
            wanted = self.hints.wanted(samples)
            found = [figure(self.hints.agreement(images, wanted))]
            if count > 1:
                others = self.hints.agreement(images, wanted.roll(1, 0))
                found.append(figure(others, ", others' hints"))
            return [*found, without()]

        return measured

    def _generated_under(
        self,
        samples: Sequence[int],
        options: Mapping[str, Any],
        prompts: Sequence[str],
        *,
        controlled: bool = True,
    ) -> Iterator[Image.Image]:
        """A picture for each sample, under its hint and a prompt; its seed is its place."""
        recipes = [
            recipe
            for place, (sample, prompt) in enumerate(zip(samples, prompts, strict=True))
            for recipe in self.model.recipes(
                prompt if self.text else (), seed=SEED + place, **options, **self._options(sample)
            )
        ]
        rest = [*samples]
        for batch in loop.batches(self.model, recipes):
            own, rest = rest[: len(batch)], rest[len(batch) :]
            model = self._under(self.hints(self.hints.square(own))) if controlled else self.model
            *_, last = loop.sample_batch(model, batch)
            for picture in loop.decode(batch, last):
                yield picture.image

    def _under(self, hints: Tensor) -> LatentDiffusion:
        """The model with the ControlNet under these hints, one for each picture of a batch."""
        placed, applied = self.model.denoise.network, AppliedControlNet(self.network, hints)
        own = CallOptions(controls=(applied,))

        def network(
            x: Tensor, timestep: Tensor, cond: Conditioning, options: CallOptions = own
        ) -> Tensor:
            return placed(x, timestep, cond, replace(options, controls=own.controls))

        self._generator.denoise = replace(self.model.denoise, network=network)
        return self._generator

    def publish(self, folder: Path, *, brief: bool = False) -> None:  # noqa: ARG002
        """Writes the ControlNet as a diffusers folder."""
        with atomic_folder(folder, replace=True) as building:
            save_component(building, self.network)

    def next_steps(self, model: Path, data: Path) -> str:  # noqa: ARG002
        """A command that generates an image under a hint."""
        condition = self.config.condition
        hint = {"map": "MAP.png", "canny": "canny:PICTURE.png"}[condition.kind]
        line = ""
        if condition.kind == "canny" and condition.thresholds != (LOW, HIGH):
            hint = "EDGES.png"
            low, high = condition.thresholds
            line = f"; canny: would take the thresholds {LOW:g} and {HIGH:g}, not {low:g}, {high:g}"
        command = ["undust", "generate", *([escape(self.text.example)] if self.text else [])]
        command += ["--model", str(self.config.model), "--control", f"{model}={hint}"]
        return (
            f"generate with it: {shlex.join(command)}{line}; diffusers opens it as ControlNetModel"
        )


def _files(place: Path) -> list[Path]:
    """The weights of a ControlNet's folder or file."""
    return sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
