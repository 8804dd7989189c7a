"""The base of every kind of training of a denoiser, of a new model or of one that exists.

To add a kind:

1. a configuration, derived from `DenoisingConfig`, with the keys of the kind;
2. a subclass of `DenoisingTask`. Its `__init__` reads the data, builds or loads the model, chooses
   the modules that are trained, and calls the base's with them;
3. `publish`, which writes the result, and `next_steps`, which names a use of it;
4. a line in `kinds`.

The base makes the latents and conditions of a batch and its loss, previews and figures. A kind
changes the loss where it differs: `denoiser` for a denoiser that depends on the batch (a ControlNet
with the batch's hints), `losses` for further terms. Random numbers come from `batch` alone, with a
`RandomStream` for each use, so that a resumed run repeats them.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from undust.conditioning.prompt import escape
from undust.conditioning.tokenizer import Tokenizer
from undust.diffusion.denoiser import NetworkDenoiser
from undust.diffusion.time_sampling import NoiseLevels
from undust.diffusion.weighting import Weighting
from undust.errors import UndustError
from undust.evaluation.figure import Figure
from undust.evaluation.generated import PictureQuery
from undust.evaluation.networks import FigureNetworks
from undust.formats import model_folder
from undust.formats.components import type_of
from undust.generation import loop
from undust.latent.conditioner import ConditionInputs
from undust.networks.conditioning import Conditioning
from undust.networks.identity import IdentityFirstStage
from undust.pictures import grid
from undust.pipeline import LatentDiffusion
from undust.recipe.recipe import Recipe
from undust.training import figures
from undust.training.caches import LatentCache, PixelLatents
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.conditions import SHOWN, TrainingCondition
from undust.training.configs import OptimizerConfig
from undust.training.data import Batch, Observe, RandomStream
from undust.training.figures import FiguresConfig
from undust.training.noise import NoiseChangesConfig, training_noise
from undust.training.resume import compare_inputs
from undust.training.sources import TrainingData
from undust.training.task import TrainingConfig
from undust.training.text import Captions

PREVIEW_STEPS = 20


class DenoisingConfig(TrainingConfig, ABC):
    """The keys of every kind that trains on the denoiser's objective."""

    noise: NoiseChangesConfig = NoiseChangesConfig()
    previews: tuple[str, ...] = Field(default=(), description="prompts of the previews")


class Samples:
    """Pictures as a denoiser is trained with them: latents, captions, further conditions.

    latents: of the pictures; text: their captions, None without any.
    """

    def __init__(
        self,
        latents: LatentCache | PixelLatents,
        text: Captions | None,
        conditions: Sequence[TrainingCondition],
    ) -> None:
        self.latents, self.text, self.conditions = latents, text, conditions

    def conditioning(
        self, model: LatentDiffusion, batch: Batch, *, negative: bool = False
    ) -> Conditioning:
        """The conditioning of a batch, as the model's conditioner makes it.

        negative: the one that guidance leads away from, without captions and classes.
        """
        prompts = self.text(batch) if self.text and not negative else [None] * len(batch)
        views = self.latents.views
        fields: dict[str, Sequence[Any]] = {**views.inputs(batch, framing=model.num_size_ids > 0)}
        for each in self.conditions:
            fields |= each.inputs(batch)
        encoded = self.text.encoded(prompts) if self.text else None
        inputs = ConditionInputs(prompts, fields, negative, captions=True, encoded=encoded)
        cond = model.conditioner(inputs)
        for each in self.conditions:
            cond = cond.beside(each.channels(batch), each.label(batch))
        return cond


class DenoisingTask(ABC):
    """The published objective (Rombach et al. 2022, eq. 3) on latents z = E(picture).

    Noise of a random level is added to a latent; the loss is the squared error of the network's
    output against its target, weighted by noise level (seed 001, eq. 3).
    """

    self_conditioning = 0.5
    """Share of samples with an earlier estimate, for a model that takes one (Chen et al. 2022)."""

    def __init__(
        self,
        config: DenoisingConfig,
        out: Path,
        resumed: TrainingCheckpoint | None,
        observe: Observe,
        *,
        model: LatentDiffusion,
        modules: Mapping[str, nn.Module],
        data: TrainingData,
        text: Captions | None,
        conditions: Sequence[TrainingCondition] = (),
        levels: tuple[NoiseLevels, Weighting],
        inputs: Mapping[str, str],
        notes: Sequence[str] = (),
    ) -> None:
        """config, out, resumed: as `TrainingConfig.task`.

        observe: called while pictures are encoded; model: in evaluation mode but for `modules`,
        which are trained; conditions: beside the captions; inputs: digests of what the run is made
        of beside data and conditions, "first_stage" among them; notes: those so far. Raises
        UndustError for a size that the model does not have, and if the inputs are not those of
        `resumed`.
        """
        self.config, self.model, self.data, self.text = config, model, data, text
        self.size = (config.data.size, config.data.size)
        self.conditions = list(conditions)
        self.noise_levels, self.weighting = levels
        self.inputs, self.notes = {**data.inputs, **inputs}, list(notes)
        self.notes += [note for each in conditions for note in each.notes]
        if digests := [*filter(None, (each.digest for each in conditions))]:
            self.inputs["conditions"] = " ".join(digests)
        self.notes += compare_inputs(resumed, self.inputs, out) if resumed else []
        model.latent_shape(*self.size)
        # Unchecked: the loop stops at the first loss that is not finite.
        self.denoise = replace(model.denoise, network=model.unet)
        self.modules = nn.ModuleDict(modules).train()
        self.networks = nn.ModuleDict({type_of(model.unet).folder: model.unet})
        if text and not text.finished:
            self.networks.update({each.name: each.encoder for each in model.texts})
        self.optimizers: dict[str, OptimizerConfig] = {}
        self.order, self.validation = data.order, data.validation
        self.latents = self._encoded(data, out, resumed, observe)
        self.notes += self.latents.notes
        self.samples = Samples(self.latents, text, self.conditions)

    def _encoded(
        self,
        data: TrainingData,
        out: Path,
        resumed: TrainingCheckpoint | None,
        observe: Observe,
    ) -> LatentCache | PixelLatents:
        """The latents of pictures, kept in a folder; of a model of pixels the pictures."""
        if isinstance(self.model.autoencoder, IdentityFirstStage):
            return PixelLatents(data, observe)
        made_of = {"first_stage": self.inputs["first_stage"], "size": self.size[0]}
        first_stage = self.model.first_stage
        return LatentCache(first_stage, data, out, made_of, observe, resumed=resumed is not None)

    def denoiser(self, batch: Batch) -> NetworkDenoiser[Conditioning]:  # noqa: ARG002
        """The denoiser that a batch is trained with."""
        return self.denoise

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted squared error of the network's output, a mean over the batch."""
        return {"loss": self.loss_of(self.samples, batch).mean()}

    def loss_of(self, samples: Samples, batch: Batch) -> Tensor:
        """The loss [B] of a batch of samples."""
        z = samples.latents.sample(batch)
        # The validation loss is comparable between runs with other noise.
        changes = self.config.noise if self.modules.training else NoiseChangesConfig()
        noise, given = training_noise(changes, batch, z.shape[1:])
        sigma = self.noise_levels(batch.uniform(RandomStream.TIME)[:, 0])
        cond = samples.conditioning(self.model, batch)
        denoise = self.denoiser(batch)
        if self.model.self_conditioned:
            x = z + sigma.to(z).reshape(-1, 1, 1, 1) * given
            cond = self._self_conditioned(denoise, batch, x, sigma.to(z), cond)
        return denoise.loss(z, noise, sigma, cond, self.weighting, input_noise=given)

    def _self_conditioned(
        self,
        denoise: NetworkDenoiser[Conditioning],
        batch: Batch,
        x: Tensor,
        sigma: Tensor,
        cond: Conditioning,
    ) -> Conditioning:
        """With the estimate of a first call for some samples (Chen et al. 2022, algorithm 1)."""
        nothing = torch.zeros_like(x)
        with torch.no_grad():
            first = denoise(x, sigma, cond.with_estimate(nothing))
        chosen = batch.uniform(RandomStream.SELF_CONDITIONING) < self.self_conditioning
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
        """None: the tokenizer is that of a finished text encoder."""
        return None

    @property
    def preview_options(self) -> dict[str, Any]:
        """Options of the previews' requests."""
        return {"steps": PREVIEW_STEPS}

    def preview(self, *, brief: bool = False) -> Image.Image:
        """Images of the recipe's prompts with constant seeds; brief: one image, in one step.

        With other conditions those of samples of the data, each with its maps above the image.
        """
        options = self.preview_options
        if brief:
            options["steps"] = 1
        if not self.conditions:
            prompts = [*map(escape, self.captions)] if self.text else ()
            count = 1 if self.text else SHOWN
            options |= self._size_option()
            recipes = self.model.recipes(prompts, seed=0, count=count, **options)
            return grid(self._generated(recipes[: 1 if brief else None]))
        train = self.data.train
        shown = train[:: max(1, len(train) // SHOWN)][: 1 if brief else SHOWN]
        rows: list[list[Image.Image]] = []
        for seed, sample in enumerate(shown):
            own = options | self._options(sample)
            prompts = escape(self.text.first(sample)) if self.text else ()
            maps = [image for each in self.conditions for image in each.shown(sample)]
            rows.append([*maps, *self._generated(self.model.recipes(prompts, seed=seed, **own))])
        return grid([image for column in zip(*rows, strict=True) for image in column], len(rows))

    def _size_option(self) -> dict[str, Any]:
        """The size of pictures as an option of a request, unless it is the model's default."""
        return {} if self.model.size == self.size else {"size": self.size}

    def _options(self, sample: int) -> dict[str, Any]:
        """The size and the conditions of a sample as options of a request."""
        options: dict[str, Any] = {}
        for each in self.conditions:
            options |= each.options(sample)
        return options if "init" in options else {**self._size_option(), **options}

    def _query(self, sample: int) -> PictureQuery:
        options = self._options(sample)
        if not self.text:
            return PictureQuery("", options=options)
        return PictureQuery(self.text.first(sample), "training captions", options=options)

    def _generated(self, recipes: list[Recipe]) -> list[Image.Image]:
        *_, last = loop.sample_batch(self.model, recipes)
        return [picture.image for picture in loop.decode(recipes, last)]

    @abstractmethod
    def publish(self, folder: Path, *, brief: bool = False) -> None:
        """As `Task.publish`."""

    def figures(
        self, config: FiguresConfig, networks: FigureNetworks
    ) -> Callable[[], list[Figure]]:
        """Measures pictures of the conditions of training pictures."""
        return figures.of_diffusion(self.model, self.data, self.size, self._query, config, networks)

    def next_steps(self, model: Path, data: Path) -> str:  # noqa: ARG002
        """A command that generates an image under a condition of the data."""
        command = ["undust", "generate", *([escape(self.text.example)] if self.text else [])]
        command += ["--model", str(model)]
        command += [part for each in self.conditions for part in each.arguments()]
        pipeline = model_folder.pipeline(self.model)
        opens = f"diffusers opens it as {pipeline}"
        if pipeline == "DiffusionPipeline":
            opens = "diffusers has no pipeline for such a model; it opens the components"
        return f"generate with it: {shlex.join(command)}; {opens}"


def whole_pictures(config: TrainingConfig) -> None:
    """Raises UndustError for crops, of which there are no latents."""
    if config.data.crop is not None:
        raise UndustError("data.crop: latents are made of whole pictures; leave it out")
