"""The reconstruction loss of a first stage, and the weights of all its loss terms."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from undust.formats.feature_networks import load_features, load_heads
from undust.networks.features.perceptual import PerceptualDistance
from undust.training.configs import Config, Place
from undust.training.losses import gradient_difference, negative_log_likelihood


class ReconstructionLossConfig(Config):
    """Weights of the first stage's loss terms.

    Each term is a mean, as in the published VQ loss. The published KL loss is a sum over the N
    numbers of a picture: divided by N it is this one with kl = 1e-6·n/N, for a latent of n numbers.
    """

    pixel: Literal["l1", "l2", "none"] = Field(default="l1", description="distance of pixels")
    edges: float = Field(
        default=1.0, ge=0, description="weight of the gradient difference, at every scale"
    )
    scales: int = Field(
        default=3, gt=0, description="scales of the gradient difference, each half the last"
    )
    perceptual: float = Field(
        default=0.0, ge=0, description="weight of the perceptual distance; published: 1"
    )
    perceptual_network: str = Field(
        default="vgg16",
        description="feature network of the perceptual distance: name, path or org/name on the hub",
    )
    perceptual_heads: Place | None = Field(
        default=None,
        description="file with LPIPS' weights of its channels, or org/name on the hub; left out: "
        "all equal",
    )
    learned_variance: bool = Field(
        default=False, description="divide the error by a learned variance"
    )
    equivariance: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of steps with scaled and rotated latents (EQ-VAE); published: 0.5",
    )
    kl: float = Field(default=1e-6, ge=0, description="weight of the KL term")
    codebook: float = Field(
        default=1.0, ge=0, description="weight of the distance of codes to their latents, for [vq]"
    )
    commitment: float = Field(
        default=0.25, ge=0, description="weight of the distance of latents to their codes, for [vq]"
    )
    latent: float = Field(
        default=1.0, ge=0, description="weight of the distance to the teacher's latents, for [tiny]"
    )

    def weighted(self, terms: dict[str, Tensor]) -> Tensor | float:
        """The weighted sum of the bottleneck's terms; terms without a weight are only logged."""
        weights = {
            "kl": self.kl,
            "codebook": self.codebook,
            "commitment": self.commitment,
            "latent": self.latent,
        }
        return sum(weights[name] * term for name, term in terms.items() if name in weights)


class ReconstructionLoss(nn.Module):
    """The distance of pictures: pixels, edges and features, divided by a variance that is learned.

    perceptual: empty if it has no weight; log_variance: None if it is not learned.
    """

    def __init__(self, config: ReconstructionLossConfig) -> None:
        """Raises UndustError for a feature network that cannot be loaded."""
        super().__init__()
        self.config = config
        self.log_variance = nn.Parameter(torch.zeros(())) if config.learned_variance else None
        # In a list, so that its frozen weights are no part of this module.
        self.perceptual: list[PerceptualDistance] = []
        if config.perceptual:
            heads = load_heads(config.perceptual_heads) if config.perceptual_heads else None
            features = load_features(config.perceptual_network)
            self.perceptual.append(PerceptualDistance(features, heads))

    @property
    def notes(self) -> list[str]:
        """A line that names the feature network, if there is one."""
        return [f"loss.perceptual: {distance.name}" for distance in self.perceptual]

    def forward(self, y: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstructions y and pictures x [B,3,H,W] in float32 → the loss, and its terms."""
        config = self.config
        terms: dict[str, Tensor] = {}
        if config.pixel != "none":
            terms["pixel"] = F.l1_loss(y, x) if config.pixel == "l1" else F.mse_loss(y, x)
        terms["edges"] = gradient_difference(y, x, config.scales)
        loss = config.edges * terms["edges"]
        loss = terms["pixel"] + loss if "pixel" in terms else loss
        for distance in self.perceptual:
            terms["perceptual"] = distance(y, x).float().mean()
            loss = loss + config.perceptual * terms["perceptual"]
        if self.log_variance is not None:
            terms["log_variance"] = self.log_variance.detach().clone()
            loss = negative_log_likelihood(loss, self.log_variance)
        return loss, terms
