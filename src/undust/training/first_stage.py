"""Training the first stage: the autoencoder between images and latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Literal, Self

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from undust.errors import UndustError
from undust.formats.components import save_component
from undust.formats.files import atomic_folder
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig
from undust.pictures import grid, to_images
from undust.training.caches import ImageCache, in_batches
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.configs import Config, OptimizerConfig
from undust.training.data import Batch, Observe, RandomStream, crop
from undust.training.losses import gradient_difference
from undust.training.resume import compare_inputs
from undust.training.sources import TrainingData
from undust.training.task import TrainingConfig

STATISTICS_IMAGES = 256  # whose latents are measured for the latent scale
PREVIEW_IMAGES = 16


class ReconstructionLossConfig(Config):
    """Weights of the first stage's loss terms."""

    pixel: Literal["l1", "l2"] = Field(default="l1", description="distance of pixels")
    edges: float = Field(
        default=1.0, ge=0, description="weight of the gradient difference, at every scale"
    )
    scales: int = Field(
        default=3, gt=0, description="scales of the gradient difference, each half the last"
    )
    kl: float = Field(default=1e-6, ge=0, description="weight of the KL term")


class FirstStageConfig(TrainingConfig):
    """Trains the autoencoder between pictures and latents."""

    kind: Literal["first-stage"] = Field(description="what is trained")
    autoencoder: AutoencoderConfig
    loss: ReconstructionLossConfig = ReconstructionLossConfig()

    def task(
        self, out: Path, resumed: TrainingCheckpoint | None, observe: Observe
    ) -> FirstStageTask:
        """The training of the autoencoder."""
        return FirstStageTask(self, out, resumed, observe)

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


class FirstStageTask:
    """Reconstruction loss and KL; the published latents have mean 0 and variance 1 per channel."""

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
        data = config.data
        self.data = TrainingData(data, config.seed)
        self.notes, self.inputs = self.data.notes, self.data.inputs
        self.notes += compare_inputs(resumed, self.inputs, out) if resumed else []
        torch.manual_seed(config.seed)
        self.autoencoder = Autoencoder(config.autoencoder)
        side, factor = data.crop or data.size, self.autoencoder.downsampling_factor
        if side % factor or data.size < side:
            raise UndustError(
                f"data.size {data.size} and data.crop {data.crop}: the side to train on has to be "
                f"a multiple of {factor} and the crop no larger than the picture"
            )
        self.modules = nn.ModuleDict({"autoencoder": self.autoencoder})
        self.optimizers: dict[str, OptimizerConfig] = {}
        self.order, self.validation = self.data.order, self.data.validation
        self.images = ImageCache(self.data.source, data.size)
        self.images.preload([*self.data.train, *self.data.held_out], observe)
        self.config = config

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss, each a mean over images (KL: over the numbers of the latents)."""
        settings = self.config.loss
        x = self.images(batch.sample)
        if self.config.data.crop:
            x = crop(x, self.config.data.crop, batch.uniform(RandomStream.CROP, 2))
        posterior = self.autoencoder.encode(x)
        noise = batch.normal(RandomStream.POSTERIOR, posterior.mean.shape[1:])
        y = self.autoencoder.decode(posterior.sample(noise)).float()
        pixel = F.l1_loss(y, x) if settings.pixel == "l1" else F.mse_loss(y, x)
        terms = {
            "pixel": pixel,
            "edges": gradient_difference(y, x, settings.scales),
            "kl": posterior.kl().float().mean() / posterior.mean[0].numel(),
        }
        loss = terms["pixel"] + settings.edges * terms["edges"] + settings.kl * terms["kl"]
        return {"loss": loss, **terms}

    def diagnoses(self, step: int, means: Mapping[str, float]) -> dict[str, str]:  # noqa: ARG002
        """None yet."""
        return {}

    @torch.no_grad()
    def preview(self, *, brief: bool = False) -> Image.Image:
        """Images of the data set above their reconstructions; brief: one of them."""
        train = self.data.train
        apart = max(1, len(train) // PREVIEW_IMAGES)
        x = self.images(train[::apart][: 1 if brief else PREVIEW_IMAGES])
        y = self.autoencoder.decode(self.autoencoder.encode(x).mode())
        return grid(to_images(torch.cat([x, y])), columns=len(x))

    @torch.no_grad()
    def publish(self, folder: Path, *, brief: bool = False) -> None:
        """Writes the autoencoder as a diffusers folder, its latents normalised.

        Mean and deviation of each channel of sampled latents (a channel without information is all
        sampling noise) are measured on the run's first images and folded into the 1×1 convolutions
        on both sides of the latent, so that every tool that reads the folder gets latents of
        variance 1 with a scaling factor of 1. brief: measured on two images.
        """
        indices = self.order.batch(
            0, min(2 if brief else STATISTICS_IMAGES, len(self.data.train))
        ).sample
        parts = [self.autoencoder.encode(x) for x in in_batches(self.images, indices)]
        mean = torch.cat([part.mean for part in parts])
        spread = torch.cat([part.logvar for part in parts]).exp().mean((0, 2, 3))
        deviation = (mean.var((0, 2, 3)) + spread).sqrt()
        published = Autoencoder(
            self.config.autoencoder.model_copy(
                update={"scaling_factor": 1.0, "sample_size": self.config.data.size}
            )
        )
        published.load_state_dict(self.autoencoder.state_dict())
        fold_latent_stats(published, mean.mean((0, 2, 3)), deviation)
        with atomic_folder(folder, replace=True) as building:
            save_component(building, published)

    def next_steps(self, model: Path, data: Path) -> str:
        """The key of a diffusion recipe that uses the first stage, and a command to measure it."""
        return (
            f'train on its latents: a diffusion recipe with first_stage = "{model}"; measure it: '
            f"undust evaluate {quote(str(model))} {quote(str(data))}"
        )


@torch.no_grad()
def fold_latent_stats(autoencoder: Autoencoder, mean: Tensor, deviation: Tensor) -> None:
    """Changes latents of this mean and deviation [C] to 0 and 1, with the same reconstructions.

    z' = (z − m)/s is folded into `quant_conv` (the log-variance falls by 2·log s) and z = s·z' + m
    into `post_quant_conv`. Raises UndustError if the autoencoder lacks either.
    """
    before, after = autoencoder.quant_conv, autoencoder.post_quant_conv
    if not isinstance(before, nn.Conv2d) or not isinstance(after, nn.Conv2d):
        raise UndustError("autoencoder: use_quant_conv and use_post_quant_conv have to be true")
    if before.bias is None or after.bias is None:
        raise UndustError("autoencoder: the convolutions beside the latent need their biases")
    channels = len(mean)
    before.weight[:channels] /= deviation[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / deviation
    before.bias[channels:] -= 2 * deviation.log()
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= deviation[None, :, None, None]
