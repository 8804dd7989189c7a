"""What is between encoder and decoder in the training of each kind of first stage."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from undust.latent.first_stage import FirstStage
from undust.networks.autoencoder import Autoencoder
from undust.networks.base import FirstStageNetwork
from undust.networks.tiny import TinyAutoencoder
from undust.networks.vq import VQAutoencoder
from undust.training.codebook import CodebookTraining
from undust.training.data import Batch, RandomStream
from undust.training.losses import straight_through

INFORMATIVE = 0.01  # nats a channel has per latent pixel if it has any information

Terms = dict[str, Tensor]


class Encoded(NamedTuple):
    """Latents to decode [B,C,h,w], the pictures that they should give, and loss terms."""

    latents: Tensor
    pictures: Tensor
    terms: Terms


class Bottleneck(Protocol):
    """A kind of first stage in training. Terms are means; the recipe's `loss` has their weights."""

    def encode(self, x: Tensor, batch: Batch) -> Encoded:
        """Of pictures [B,3,H,W] in [-1,1]."""
        ...

    def decode(self, latents: Tensor, batch: Batch) -> tuple[Tensor, Terms]:
        """Pictures [B,3,f·h,f·w], and further terms."""
        ...


class KLBottleneck:
    """Latents are drawn from the posterior; "kl" pulls it to the unit normal distribution."""

    def __init__(self, network: Autoencoder) -> None:
        self.network = network

    def encode(self, x: Tensor, batch: Batch) -> Encoded:
        """The terms are "kl", per number of the latent, and how many channels have information."""
        posterior = self.network.encode(x)
        mean, logvar = posterior.mean, posterior.logvar
        noise = batch.normal(RandomStream.POSTERIOR, mean.shape[1:])
        kl = posterior.kl().float().mean() / mean[0].numel()
        with torch.no_grad():
            squares = mean.float().square() + logvar.float().exp() - 1 - logvar.float()
            active = (squares.mean((0, 2, 3)) / 2 > INFORMATIVE).float().sum()
        return Encoded(posterior.sample(noise), x, {"kl": kl, "active_channels": active})

    def decode(self, latents: Tensor, batch: Batch) -> tuple[Tensor, Terms]:  # noqa: ARG002
        """Without further terms."""
        return self.network.decode(latents), {}


class VQBottleneck:
    """Latents are replaced by their nearest codes, with a straight-through gradient.

    training: of the codebook; None to leave it as it is.
    """

    def __init__(self, network: VQAutoencoder, training: CodebookTraining | None) -> None:
        self.network, self.training = network, training

    def encode(self, x: Tensor, batch: Batch) -> Encoded:  # noqa: ARG002
        """Without terms."""
        return Encoded(self.network.encode(x).mean, x, {})

    def decode(self, latents: Tensor, batch: Batch) -> tuple[Tensor, Terms]:
        """The terms are "commitment" of latents to their codes, "codebook" and the codes' use.

        Both are mean squared distances (van den Oord et al. 2017, eq. 3): "commitment" has
        gradients to the latents alone, "codebook" to the codes alone, and is left out if they
        follow moving averages.
        """
        quantize, training = self.network.quantize, self.training
        z = latents.float()
        learning = training if training is not None and training.training else None
        if learning is not None:
            learning.revive(z, batch)
        index = quantize.nearest(z)
        codes = quantize(index).float()
        terms: Terms = {}
        if training is not None:
            terms["commitment"] = F.mse_loss(z, codes.detach())
            if training.config.update == "gradient":
                terms["codebook"] = F.mse_loss(codes, z.detach())
        quantised = straight_through(z, codes)
        if learning is not None:
            learning.update(z, index)
            terms |= learning.figures()
        return self.network.decode_codes(quantised), terms


class Distillation:
    """A tiny first stage learns the latents of a teacher, and the teacher's pictures of them."""

    def __init__(self, network: TinyAutoencoder, teacher: FirstStageNetwork) -> None:
        """teacher: frozen."""
        self.network, self.teacher = network, FirstStage(teacher)

    def encode(self, x: Tensor, batch: Batch) -> Encoded:
        """The teacher's latents and pictures; the term is the "latent" mean squared error."""
        with torch.no_grad():
            posterior = self.teacher.encode(x)
            shape = posterior.mean.shape[1:]
            latents = posterior.sample(batch.normal(RandomStream.POSTERIOR, shape))
            pictures = self.teacher.decode(latents)
        error = F.mse_loss(self.network.encode(x).mean.float(), posterior.mean)
        return Encoded(latents, pictures, {"latent": error})

    def decode(self, latents: Tensor, batch: Batch) -> tuple[Tensor, Terms]:  # noqa: ARG002
        """Without further terms."""
        return self.network.decode(latents), {}
