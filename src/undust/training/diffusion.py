"""Training a denoiser, on latents that are encoded once or on pixels, under any conditions."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from undust.conditioning.prompt import escape
from undust.conditioning.tokenizer import Tokenizer
from undust.errors import UndustError
from undust.evaluation.figure import Figure
from undust.evaluation.generated import PictureQuery
from undust.evaluation.networks import FigureNetworks
from undust.formats import model_folder, standalone_vae
from undust.formats.components import type_of
from undust.generation import loop
from undust.latent.conditioner import ConditionInputs
from undust.networks.conditioning import Conditioning
from undust.pictures import grid
from undust.training import figures
from undust.training.caches import LatentCache, PixelLatents
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.conditions import (
    SHOWN,
    LabelCondition,
    MapCondition,
    TrainingCondition,
)
from undust.training.configs import OptimizerConfig
from undust.training.data import Batch, Observe, RandomStream
from undust.training.derived import PIXELS
from undust.training.diffusion_model import DiffusionModelConfig
from undust.training.figures import FiguresConfig
from undust.training.latent_statistics import unusual_deviation
from undust.training.noise import NoiseChangesConfig, training_noise
from undust.training.resume import compare_inputs
from undust.training.sources import TrainingData, content_digest
from undust.training.spatial import InpaintingCondition, LowResolutionCondition
from undust.training.text import Captions


class DiffusionConfig(DiffusionModelConfig):
    """Trains a denoiser, with its own text encoder or a finished one, or without text."""

    kind: Literal["diffusion"] = Field(description="what is trained")
    noise: NoiseChangesConfig = NoiseChangesConfig()
    previews: tuple[str, ...] = Field(default=(), description="prompts of the previews")

    def task(
        self, out: Path, resumed: TrainingCheckpoint | None, observe: Observe
    ) -> DiffusionTask:
        """The training of the denoiser."""
        return DiffusionTask(self, out, resumed, observe)


class DiffusionTask:
    """The published objective (Rombach et al. 2022, eq. 3) on latents z = E(picture).

    Noise of a random level is added to a latent; the loss is the squared error of the network's
    output against its target, weighted by noise level (seed 001, eq. 3).
    """

    def __init__(
        self,
        config: DiffusionConfig,
        out: Path,
        resumed: TrainingCheckpoint | None = None,
        observe: Observe = lambda _done, _all: None,
    ) -> None:
        """As `TrainingConfig.task`. observe: called while images are encoded as latents."""
        self.config = config
        size, diffusion = config.data.size, config.diffusion
        if config.data.crop is not None:
            raise UndustError("data.crop: latents are made of whole pictures; leave it out")
        process, self.noise_levels, self.weighting = diffusion.build()
        fields = config.captions.fields if config.has_text else ()
        self.data = TrainingData(config.data, config.seed, fields)
        self.inputs, self.notes = self.data.inputs, self.data.notes
        if config.first_stage != PIXELS:
            files = standalone_vae.files(config.first_stage)
            self.inputs["first_stage"] = content_digest(files)
        self.text = None
        if config.has_text:
            self.text = Captions(config.captions, self.data, resumed, out, config.text_encoder_from)
            self.notes += self.text.notes
        labels = LabelCondition(config.labels, self.data) if config.labels else None
        maps = MapCondition(config.maps, self.data, size) if config.maps else None
        self.conditions: list[TrainingCondition] = [each for each in (labels, maps) if each]
        if self.conditions:
            self.inputs["conditions"] = " ".join(each.digest for each in self.conditions)
        self.notes += compare_inputs(resumed, self.inputs, out) if resumed else []
        self.model = config.new_model(process, self.text, labels, maps)
        if config.low_resolution:
            given = config.low_resolution, self.data, size, self.model
            self.conditions.append(LowResolutionCondition(*given))
        if config.inpainting:
            self.conditions.append(
                InpaintingCondition(config.inpainting, self.data, size, self.model)
            )
        # Unchecked: the loop stops at the first loss that is not finite.
        self.denoise = replace(self.model.denoise, network=self.model.unet)
        self.model.latent_shape(size, size)
        self.modules = nn.ModuleDict({type_of(self.model.unet).folder: self.model.unet})
        if config.text_encoder:
            self.modules["text_encoder"] = self.model.texts[0].encoder
        self.optimizers: dict[str, OptimizerConfig] = {}
        self.order, self.validation = self.data.order, self.data.validation
        if config.first_stage == PIXELS:
            self.latents = PixelLatents(self.data, size, observe)
        else:
            self.latents = cache = LatentCache(
                self.model.first_stage,
                self.data,
                size,
                out,
                {"first_stage": self.inputs["first_stage"], "size": size},
                observe,
                resumed=resumed is not None,
            )
            if not resumed:
                network, latents = self.model.autoencoder, cache.posterior
                self.notes += unusual_deviation(network, latents, config.first_stage)
        self.notes += self.latents.notes

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted squared error of the network's output, a mean over the batch."""
        z = self.latents.sample(batch)
        # The validation loss is comparable between runs with other noise.
        changes = self.config.noise if self.modules.training else NoiseChangesConfig()
        noise, given = training_noise(changes, batch, z.shape[1:])
        sigma = self.noise_levels(batch.uniform(RandomStream.TIME)[:, 0])
        prompts = self.text(batch) if self.text else [None] * len(batch)
        fields: dict[str, Sequence[Any]] = {}
        for each in self.conditions:
            fields |= each.inputs(batch)
        encoded = self.text.encoded(prompts) if self.text else None
        inputs = ConditionInputs(prompts, fields, captions=True, encoded=encoded)
        cond = self.model.conditioner(inputs)
        for each in self.conditions:
            cond = cond.beside(each.channels(batch), each.label(batch))
        if self.config.self_conditioning:
            x = z + sigma.to(z).reshape(-1, 1, 1, 1) * given
            cond = self._self_conditioned(batch, x, sigma.to(z), cond)
        loss = self.denoise.loss(z, noise, sigma, cond, self.weighting, input_noise=given)
        return {"loss": loss.mean()}

    def _self_conditioned(
        self, batch: Batch, x: Tensor, sigma: Tensor, cond: Conditioning
    ) -> Conditioning:
        """With the estimate of a first call for some samples (Chen et al. 2022, algorithm 1)."""
        nothing = torch.zeros_like(x)
        with torch.no_grad():
            first = self.denoise(x, sigma, cond.with_estimate(nothing))
        chosen = batch.uniform(RandomStream.SELF_CONDITIONING) < self.config.self_conditioning
        return cond.with_estimate(first.to(x) * chosen.to(x).reshape(-1, 1, 1, 1))

    def diagnoses(self, step: int, means: Mapping[str, float]) -> dict[str, str]:  # noqa: ARG002
        """None yet."""
        return {}

    @property
    def captions(self) -> tuple[str, ...]:
        """The prompts of the preview's images."""
        if self.conditions or not self.text:
            return ()
        return self.config.previews or ("",)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the text encoder, if one is trained."""
        return self.model.texts[0].tokenizer if self.config.text_encoder else None

    def preview(self, *, brief: bool = False) -> Image.Image:
        """Images of the recipe's prompts with constant seeds; brief: one image, in one step.

        With other conditions those of samples of the data, each with its maps above the image.
        """
        steps = 1 if brief else 20
        if not self.conditions:
            prompts = [*map(escape, self.captions)] if self.text else ()
            count = 1 if self.text else SHOWN
            recipes = self.model.recipes(prompts, seed=0, steps=steps, count=count)
            return grid(self._generated(recipes[: 1 if brief else None]))
        train = self.data.train
        shown = train[:: max(1, len(train) // SHOWN)][: 1 if brief else SHOWN]
        rows: list[list[Image.Image]] = []
        for seed, sample in enumerate(shown):
            options: dict[str, Any] = {"seed": seed, "steps": steps}
            for each in self.conditions:
                options |= each.options(sample)
            prompts = escape(self.text.first(sample)) if self.text else ()
            maps = [image for each in self.conditions for image in each.shown(sample)]
            rows.append([*maps, *self._generated(self.model.recipes(prompts, **options))])
        return grid([image for column in zip(*rows, strict=True) for image in column], len(rows))

    def _query(self, sample: int) -> PictureQuery:
        options: dict[str, Any] = {}
        for each in self.conditions:
            options |= each.options(sample)
        if not self.text:
            return PictureQuery("", options=options)
        return PictureQuery(self.text.first(sample), "training captions", options=options)

    def _generated(self, recipes: list[Any]) -> list[Image.Image]:
        *_, last = loop.sample_batch(self.model, recipes)
        return [picture.image for picture in loop.decode(recipes, last)]

    def publish(self, folder: Path, *, brief: bool = False) -> None:  # noqa: ARG002
        """Writes the whole model as a diffusers folder."""
        self.model.save(folder)

    def figures(
        self, config: FiguresConfig, networks: FigureNetworks
    ) -> Callable[[], list[Figure]]:
        """Measures pictures of the conditions of training pictures."""
        return figures.of_diffusion(self.model, self.data, self._query, config, networks)

    def next_steps(self, model: Path, data: Path) -> str:  # noqa: ARG002
        """A command that generates an image under a condition of the data."""
        command = ["undust", "generate", *([escape(self.text.example)] if self.text else [])]
        command += ["--model", str(model)]
        command += ["--label", self.model.classes[0]] if self.model.classes else []
        for each in self.model.maps:
            command += ["--map", f"{each.kind}.png"]
        pipeline = model_folder.pipeline(self.model)
        opens = f"diffusers opens it as {pipeline}"
        if pipeline == "DiffusionPipeline":
            opens = "diffusers has no pipeline for such a model; it opens the components"
        return f"generate with it: {shlex.join(command)}; {opens}"
