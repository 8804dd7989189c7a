"""Training the first stage: pictures to latents and back."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from undust.errors import UndustError
from undust.formats.components import save_component
from undust.formats.files import atomic_folder
from undust.networks.autoencoder import Autoencoder
from undust.pictures import grid, to_images
from undust.training.configs import FirstStageConfig
from undust.training.data import (
    Batch,
    ImageCache,
    Observe,
    RandomStream,
    SampleOrder,
    crop,
    digest,
    groups,
    training_samples,
)
from undust.training.latents import in_batches
from undust.training.losses import gradient_difference

MEASURED = 256  # pictures whose latents set the latent scale
SHOWN = 16  # pictures of a preview


class FirstStageTask:
    """Reconstruction, edges and KL; the published latents have mean 0 and variance 1 a channel."""

    tokenizer = None
    example = ""
    captions = ()

    def __init__(
        self, recipe: FirstStageConfig, observe: Observe = lambda _done, _all: None
    ) -> None:
        """observe: told how many pictures of all are decoded before the first step."""
        data = recipe.data
        samples, self.notes = training_samples(data)
        self.inputs = {"data": digest(samples)}
        torch.manual_seed(recipe.seed)
        self.autoencoder = Autoencoder(recipe.autoencoder)
        side = data.crop or data.size
        factor = self.autoencoder.downsampling_factor
        if side % factor or data.size < side:
            raise UndustError(
                f"data.size {data.size} and data.crop {data.crop}: the side trained on has to be a "
                f"multiple of {factor} and the crop no larger than the picture"
            )
        self.modules = nn.ModuleDict({"autoencoder": self.autoencoder})
        self.order = SampleOrder(groups(samples, data.draw_by), recipe.seed)
        self.pictures = ImageCache([sample.path for sample in samples], data.size)
        self.pictures.preload(observe)
        self.recipe = recipe

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the recipe's loss, each a mean over pictures (KL: over latent numbers)."""
        settings = self.recipe.loss
        x = self.pictures(batch.sample)
        if self.recipe.data.crop:
            x = crop(x, self.recipe.data.crop, batch.uniform(RandomStream.CROP, 2))
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

    @torch.no_grad()
    def preview(self, *, brief: bool = False) -> Image.Image:
        """Pictures of the data set above what became of them; brief: one of them."""
        apart = max(1, len(self.pictures) // SHOWN)
        x = self.pictures(range(0, len(self.pictures), apart)[: 1 if brief else SHOWN])
        y = self.autoencoder.decode(self.autoencoder.encode(x).mode())
        return grid(to_images(torch.cat([x, y])), columns=len(x))

    @torch.no_grad()
    def publish(self, folder: Path, *, brief: bool = False) -> None:
        """Writes the autoencoder as a diffusers folder, its latents normalised.

        Mean and deviation of each channel of sampled latents (a channel that carries nothing is
        all sampling noise) are measured on the run's first pictures and folded into the 1×1
        convolutions on both sides of the latent, so that every tool that reads the folder gets
        latents of variance 1 with a scaling factor of 1. brief: measured on two pictures.
        """
        which = self.order.batch(0, min(2 if brief else MEASURED, len(self.pictures))).sample
        parts = [self.autoencoder.encode(x) for x in in_batches(self.pictures, which)]
        mean = torch.cat([part.mean for part in parts])
        spread = torch.cat([part.logvar for part in parts]).exp().mean((0, 2, 3))
        deviation = (mean.var((0, 2, 3)) + spread).sqrt()
        published = Autoencoder(
            self.recipe.autoencoder.model_copy(
                update={"scaling_factor": 1.0, "sample_size": self.recipe.data.size}
            )
        )
        published.load_state_dict(self.autoencoder.state_dict())
        fold_latent_stats(published, mean.mean((0, 2, 3)), deviation)
        with atomic_folder(folder, replace=True) as building:
            save_component(building, published)


@torch.no_grad()
def fold_latent_stats(autoencoder: Autoencoder, mean: Tensor, deviation: Tensor) -> None:
    """Makes latents of this mean and deviation [C] come out with 0 and 1, pictures unchanged.

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
