"""What is between encoder and decoder in the training of each kind of first stage."""

from __future__ import annotations

from collections.abc import Callable
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
Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Reconstructed(NamedTuple):
    """Decoded pictures [B,3,H,W], the pictures that they should be, and loss terms."""

    decoded: Tensor
    pictures: Tensor
    terms: Terms


class Bottleneck(Protocol):
    """A kind of first stage in training. Terms are means; the recipe's `loss` has their weights."""

    def __call__(self, x: Tensor, batch: Batch, transform: Transform) -> Reconstructed:
        """Encodes and decodes pictures [B,3,H,W] in [-1,1].

        transform: of latents [B,C,h,w] and their pictures, before decoding.
        """
        ...


class KLBottleneck:
    """Latents are drawn from the posterior; "kl" pulls it to the unit normal distribution."""

    def __init__(self, network: Autoencoder) -> None:
        self.network = network

    def __call__(self, x: Tensor, batch: Batch, transform: Transform) -> Reconstructed:
        """The terms are "kl", per number of the latent, and the number of informative channels."""
        posterior = self.network.encode(x)
        mean, logvar = posterior.mean, posterior.logvar
        noise = batch.normal(RandomStream.POSTERIOR, mean.shape[1:]).to(mean.device)
        z, x = transform(posterior.sample(noise), x)
        y = self.network.decode(z)
        # After decoding: the last bits of gradients depend on the order in which they are added.
        kl = posterior.kl().float().mean() / mean[0].numel()
        with torch.no_grad():
            squares = mean.float().square() + logvar.float().exp() - 1 - logvar.float()
            active = (squares.mean((0, 2, 3)) / 2 > INFORMATIVE).float().sum()
        return Reconstructed(y, x, {"kl": kl, "active_channels": active})


class VQBottleneck:
    """Latents are replaced by their nearest codes, with a straight-through gradient.

    training: of the codebook; None to leave it as it is.
    """

    def __init__(self, network: VQAutoencoder, training: CodebookTraining | None) -> None:
        self.network, self.training = network, training

    def __call__(self, x: Tensor, batch: Batch, transform: Transform) -> Reconstructed:
        """The terms are "commitment" of latents to their codes, "codebook" and the codes' use.

        Both are mean squared distances (van den Oord et al. 2017, eq. 3): "commitment" has
        gradients to the latents alone, "codebook" to the codes alone, and is left out if they
        follow moving averages.
        """
        z, x = transform(self.network.encode(x).mean, x)
        z, quantize, training = z.float(), self.network.quantize, self.training
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
        if learning is not None:
            learning.update(z, index)
            terms |= learning.figures()
        return Reconstructed(self.network.decode_codes(straight_through(z, codes)), x, terms)


class Distillation:
    """A tiny first stage learns the latents of a teacher, and the teacher's pictures of them."""

    def __init__(self, network: TinyAutoencoder, teacher: FirstStageNetwork) -> None:
        """teacher: frozen."""
        self.network, self.teacher = network, FirstStage(teacher)

    def __call__(self, x: Tensor, batch: Batch, transform: Transform) -> Reconstructed:
        """The term is "latent", the mean squared error of the latents of pictures."""
        with torch.no_grad():
            posterior = self.teacher.encode(x)
            shape = posterior.mean.shape[1:]
            drawn = posterior.sample(batch.normal(RandomStream.POSTERIOR, shape).to(x.device))
            z, pictures = transform(drawn, self.teacher.decode(drawn))
        error = F.mse_loss(self.network.encode(x).mean.float(), posterior.mean)
        return Reconstructed(self.network.decode(z), pictures, {"latent": error})
