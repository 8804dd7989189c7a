"""Mean and deviation of a first stage's latents: measured, judged, and folded into its weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undust.errors import UndustError
from undust.latent.first_stage import Posterior
from undust.networks.base import FirstStageNetwork
from undust.networks.encoder_decoder import EncoderDecoderNetwork
from undust.networks.vq import VQAutoencoder

USUAL = 0.5, 2.0  # deviations of scaled latents that diffusion models are trained on


@torch.no_grad()
def latent_statistics(
    network: FirstStageNetwork, batches: Iterable[Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean and deviation [C] of each channel of the sampled latents of pictures [B,3,H,W].

    A channel without information is all sampling noise, so the posteriors' own variance counts.
    """
    parts = [network.encode(x) for x in batches]
    mean = torch.cat([part.mean for part in parts])
    spread = torch.cat([part.logvar for part in parts]).exp().mean((0, 2, 3))
    return mean.mean((0, 2, 3)), (mean.var((0, 2, 3)) + spread).sqrt()


@torch.no_grad()
def fold_latent_stats(network: EncoderDecoderNetwork[Any], mean: Tensor, deviation: Tensor) -> None:
    """Changes latents of this mean and deviation [C] to 0 and 1, with the same reconstructions.

    z' = (z − m)/s is folded into `quant_conv` (the log-variance falls by 2·log s) and z = s·z' + m
    into `post_quant_conv`. The codes of a codebook move with the latents; s is then one number for
    all channels, their root mean square, since other distances would have other nearest codes.
    Raises UndustError for a network without these convolutions.
    """
    before, after = network.quant_conv, network.post_quant_conv
    if not isinstance(before, nn.Conv2d) or not isinstance(after, nn.Conv2d):
        raise UndustError("autoencoder: use_quant_conv and use_post_quant_conv have to be true")
    if before.bias is None or after.bias is None:
        raise UndustError("autoencoder: the convolutions beside the latent need their biases")
    channels = len(mean)
    if isinstance(network, VQAutoencoder):
        deviation = deviation.square().mean().sqrt().expand_as(deviation)
        codes = network.quantize.embedding.weight
        codes.copy_((codes - mean) / deviation)
    else:
        before.bias[channels:] -= 2 * deviation.log()
    before.weight[:channels] /= deviation[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / deviation
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= deviation[None, :, None, None]


def rescale_latents(network: FirstStageNetwork, scaling_factor: float) -> None:
    """Changes the scaling factor of a first stage, and its weights, with the same scaled latents.

    One that has no convolutions beside the latent, or another mean than 0, is left as it is.
    """
    if not isinstance(network, EncoderDecoderNetwork):
        return
    scale, shift = network.scale(torch.zeros(1))
    foldable = isinstance(network.quant_conv, nn.Conv2d) and isinstance(shift, float)
    if not foldable or shift or not isinstance(scale, float):
        return
    like = next(network.parameters()).new_ones(network.latent_channels)
    fold_latent_stats(network, 0 * like, scaling_factor / scale * like)
    network.config = network.config.model_copy(update={"scaling_factor": scaling_factor})


def unusual_deviation(network: FirstStageNetwork, latents: Posterior, place: Path) -> list[str]:
    """A line for people if scaled latents do not vary by about 1, else none.

    latents: of pictures, by the first stage `network` at `place`.
    """
    variance = latents.mean.var(unbiased=False) + latents.deviation.square().mean()
    found, now = float(variance.sqrt()), float(getattr(network.config, "scaling_factor", 1.0))
    if USUAL[0] <= found <= USUAL[1]:
        return []
    return [
        f"the scaled latents of {place} have a deviation of {found:.3g}, and diffusion models "
        f"expect 1: a scaling_factor of {now / found:.4g} in its config.json makes it so, not "
        f"{now:.4g}"
    ]
