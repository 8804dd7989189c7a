"""Training a first stage: the autoencoder between images and latents."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, Literal, Self, cast

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from undust.errors import UndustError
from undust.evaluation.figure import Figure
from undust.evaluation.networks import FigureNetworks
from undust.formats import standalone_vae
from undust.formats.components import save_component
from undust.formats.files import atomic_folder
from undust.latent.first_stage import FirstStage
from undust.networks.autoencoder import Autoencoder
from undust.networks.encoder_decoder import EncoderDecoderNetwork
from undust.networks.tiny import TinyAutoencoder
from undust.networks.vq import VQAutoencoder
from undust.pictures import grid, to_images
from undust.training import codebook, equivariance, figures
from undust.training.adversarial import Adversary, DiscriminatorConfig
from undust.training.bottlenecks import Bottleneck, Distillation, KLBottleneck, VQBottleneck
from undust.training.caches import ImageCache, all_views, in_batches
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.codebook import CodebookConfig, CodebookTraining
from undust.training.configs import OptimizerConfig
from undust.training.data import Batch, Observe, RandomStream, crop
from undust.training.figures import FiguresConfig
from undust.training.first_stage_network import FirstStageNetworkConfig, decoding_parts
from undust.training.latent_statistics import (
    fold_latent_stats,
    latent_statistics,
    unusual_deviation,
)
from undust.training.reconstruction import ReconstructionLoss, ReconstructionLossConfig
from undust.training.resume import compare_inputs
from undust.training.sources import TrainingData
from undust.training.views import View

STATISTICS_IMAGES = 256  # whose latents are measured for the latent scale
CHECKED_IMAGES = 32  # whose latents are measured to judge a scale that stays
PREVIEW_IMAGES = 16
EARLY = 0.1  # share of the run after which latents and codes are judged
NORMALISED = {
    "scaling_factor": 1.0,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}


class FirstStageConfig(FirstStageNetworkConfig):
    """Trains the autoencoder between pictures and latents."""

    kind: Literal["first-stage"] = Field(description="what is trained")
    loss: ReconstructionLossConfig = ReconstructionLossConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    codebook: CodebookConfig = CodebookConfig()

    def task(
        self, out: Path, resumed: TrainingCheckpoint | None, observe: Observe
    ) -> FirstStageTask:
        """The training of the autoencoder."""
        return FirstStageTask(self, out, resumed, observe)

    @model_validator(mode="after")
    def _has_codes(self) -> Self:
        if self.codebook != CodebookConfig() and self.table not in ("vq", ""):
            raise ValueError(f"[codebook] is for a network [vq]; [{self.table}] has no codes")
        return self


class FirstStageTask:
    """The losses of a first stage (Rombach et al. 2022, appendix G) on pictures.

    "loss" is the reconstruction loss, the weighted terms of the bottleneck, and both sides of the
    adversarial loss. The latents of the published model have mean 0 and variance 1.
    """

    tokenizer = None
    captions = ()

    def __init__(
        self,
        config: FirstStageConfig,
        out: Path,
        resumed: TrainingCheckpoint | None = None,
        observe: Observe = lambda _done, _all: None,
    ) -> None:
        """As `TrainingConfig.task`. observe: called while images are decoded into memory."""
        data, self.config = config.data, config
        self.data = TrainingData(data, config.seed, device=config.run.place)
        self.inputs = {**self.data.inputs, **config.weight_digests()}
        self.notes = self.data.notes
        self.notes += compare_inputs(resumed, self.inputs, out) if resumed else []
        self.autoencoder = config.new_network()
        side, factor = data.crop or data.size, self.autoencoder.downsampling_factor
        if side % factor or data.size % factor or data.size < side:
            raise UndustError(
                f"data.size {data.size} and data.crop {data.crop}: both have to be multiples of "
                f"{factor}, and the crop no larger than the picture"
            )
        self.reconstruction = ReconstructionLoss(config.loss)
        self.notes += self.reconstruction.notes
        self._frozen: list[nn.Module] = [*self.reconstruction.perceptual]
        self.adversary: Adversary | None = None
        if config.discriminator.weight:
            self.adversary = Adversary(config.discriminator, side, config.run.steps)
            self.notes += filter(None, [self.adversary.never_starts()])
        self.modules = nn.ModuleDict()
        if config.train == "all":
            self.modules["autoencoder"] = self.autoencoder
        else:
            self.modules.update(decoding_parts(self.autoencoder))
        self.bottleneck = self._bottleneck()
        if config.loss.learned_variance:
            self.modules["reconstruction"] = self.reconstruction
        self.optimizers: dict[str, OptimizerConfig] = {}
        if self.adversary:
            self.modules["discriminator"] = self.adversary.network
            self.optimizers["discriminator"] = config.discriminator.optimizer(config.optimizer)
        self.networks = self.modules
        self.order, self.validation = self.data.order, self.data.validation
        self.images = ImageCache(self.data.source, device=config.run.place)
        self.images.preload(all_views(self.data), observe)
        self.notes += [] if resumed else self._scale_notes()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss, each a mean over images (KL: over the numbers of the latents)."""
        settings, training = self.config.loss, self.modules.training
        x = self._pictures(self.data.views.drawn(batch))
        if self.config.data.crop:
            x = crop(x, self.config.data.crop, batch.uniform(RandomStream.CROP, 2))
        transform = equivariance.drawn(batch, settings.equivariance if training else 0)
        y, x, terms = self.bottleneck(x, batch, transform)
        y = y.float()
        likelihood, distances = self.reconstruction(y, x)
        terms = {**distances, **(terms if self.config.train == "all" else {})}
        loss = likelihood + settings.weighted(terms)
        if self.adversary and training:
            last = self.autoencoder.last_layer
            both, own = self.adversary.losses(x, y, likelihood, last, batch.step)
            loss, terms = loss + both, {**terms, **own}
        return {"loss": loss, **terms}

    def diagnoses(self, step: int, means: Mapping[str, float]) -> dict[str, str]:
        """Of a discriminator that has won, and of latents and codes without information."""
        found: dict[str, str] = {}
        if self.adversary and "discriminator" in means:
            found["discriminator"] = self.adversary.has_won(step, means["discriminator"])
        if step >= EARLY * self.config.run.steps:
            if "active_channels" in means:
                found["posterior"] = self._collapse(means["active_channels"])
            if "codes_in_use" in means:
                found["codebook"] = codebook.collapsed(means["codes_in_use"])
        return {name: line for name, line in found.items() if line}

    @torch.no_grad()
    def preview(self, *, brief: bool = False) -> Image.Image:
        """Images of the data set above their reconstructions; brief: one of them."""
        train = self.data.train
        apart = max(1, len(train) // PREVIEW_IMAGES)
        shown = train[::apart][: 1 if brief else PREVIEW_IMAGES]
        x = self._pictures([*map(self.data.views.central, shown)])
        y = self.autoencoder.decode(self.autoencoder.encode(x).mode())
        return grid(to_images(torch.cat([x, y]).cpu()), columns=len(x))

    @torch.no_grad()
    def publish(self, folder: Path, *, brief: bool = False) -> None:
        """Writes the autoencoder as a diffusers folder, its latents normalised.

        Mean and deviation of its latents are measured on the run's first images and folded into the
        weights beside the latent, so that every tool that reads the folder gets latents of variance
        1 with a scaling factor of 1 (in each channel; with a codebook over all channels). If the
        decoder alone is trained, latents and scale stay; those of a tiny first stage are its
        teacher's scaled ones. brief: measured on two images.
        """
        published = copy.deepcopy(self.autoencoder).cpu()
        if self.config.train == "all" and isinstance(published, EncoderDecoderNetwork):
            network = cast("EncoderDecoderNetwork[Any]", published)
            count = 2 if brief else STATISTICS_IMAGES
            indices = self.order.batch(0, min(count, len(self.data.train))).sample
            batches = in_batches(self._pictures, [*map(self.data.views.central, indices)])
            mean, deviation = latent_statistics(self.autoencoder, batches)
            fold_latent_stats(network, mean.cpu(), deviation.cpu())
            fields = NORMALISED.keys() & type(network.config).model_fields.keys()
            update = {name: NORMALISED[name] for name in fields}
            network.config = network.config.model_copy(
                update={**update, "sample_size": self.config.data.size}
            )
        with atomic_folder(folder, replace=True) as building:
            save_component(building, published)

    def figures(
        self, config: FiguresConfig, networks: FigureNetworks
    ) -> Callable[[], list[Figure]]:
        """Measures reconstructions of held-out pictures."""
        size = self.config.data.size
        return figures.of_first_stage(self.autoencoder, (size, size), self.data, config, networks)

    def next_steps(self, model: Path, data: Path) -> str:
        """The use of the first stage in a diffusion recipe, and a command to measure it."""
        use = f'train on its latents: a diffusion recipe with first_stage = "{model}"'
        if self.config.tiny:
            use = f"decode with it: undust generate PROMPT --vae {quote(str(model))}"
        return f"{use}; measure it: undust evaluate {quote(str(model))} {quote(str(data))}"

    def _pictures(self, views: Sequence[View]) -> Tensor:
        """Images on the device of the modules, to which the networks that do not learn move."""
        device = next(self.modules.parameters()).device
        for network in (self.autoencoder, *self._frozen):
            network.to(device)
        return self.images(views).to(device)

    def _bottleneck(self) -> Bottleneck:
        """That of the network; a codebook that learns is put into the modules."""
        match self.autoencoder:
            case Autoencoder():
                return KLBottleneck(self.autoencoder)
            case VQAutoencoder():
                training = None
                if self.config.train == "all":
                    training = CodebookTraining(self.config.codebook, self.autoencoder.quantize)
                    self.modules["codebook"] = training
                return VQBottleneck(self.autoencoder, training)
            case TinyAutoencoder():
                assert self.config.teacher
                teacher = standalone_vae.load(self.config.teacher)
                self._frozen.append(teacher)
                return Distillation(self.autoencoder, teacher)

    @torch.no_grad()
    def _scale_notes(self) -> list[str]:
        """A line if a scale that stays is wrong: that of `init`, or of the teacher."""
        place, network = self.config.init, self.autoencoder
        if isinstance(self.bottleneck, Distillation):
            place, network = self.config.teacher, self.bottleneck.teacher.network
        elif self.config.train == "all":
            return []
        assert place
        images = self.images([*map(self.data.views.central, self.data.train[:CHECKED_IMAGES])])
        return unusual_deviation(network, FirstStage(network).encode(images), place)

    def _collapse(self, active: float) -> str:
        """A line on latents of which less than half the channels have information, else ""."""
        channels = self.autoencoder.latent_channels
        if active >= channels / 2:
            return ""
        return (
            f"the posterior has collapsed: {channels - active:.0f} of {channels} latent channels "
            f"carry no information; a smaller loss.kl than {self.config.loss.kl:g} keeps more"
        )
