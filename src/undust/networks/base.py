"""The interfaces of first stage and denoiser networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from undust.networks.attention import Perturbation
from undust.networks.conditioning import Conditioning
from undust.networks.config import DenoiserConfig
from undust.networks.deep_cache import DeepFeatures


@dataclass(frozen=True)
class DiagonalGaussian:
    """A distribution over latents: `mean` and `logvar`, both [B,C,h,w]."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """A sample of the latent, by unit normal noise [B,C,h,w]."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def mode(self) -> Tensor:
        """The mode of the latent."""
        return self.mean

    def kl(self) -> Tensor:
        """The KL divergence from the unit normal, in nats per picture → [B]."""
        terms = self.mean.square() + self.logvar.exp() - 1 - self.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))


class FirstStageNetwork(nn.Module, ABC):
    """Pictures in [-1,1] to unscaled latents and back; callers apply `scale`."""

    @property
    @abstractmethod
    def image_channels(self) -> int:
        """The channels of the pictures."""

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """Width and height of the pictures that it was trained on."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """The channels of the latents."""

    @property
    @abstractmethod
    def downsampling_factor(self) -> int:
        """Pixels along a side for one latent pixel."""

    @property
    def latent_space(self) -> tuple[float, ...]:
        """Numbers that identify the space of its scaled latents."""
        return self.latent_channels, self.downsampling_factor

    def scale(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:  # noqa: ARG002
        """(s, m) for latents z [B,C,h,w]: denoisers are trained on (z − m)·s."""
        return 1.0, 0.0

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles encoder and decoder, which are called without `forward`."""
        for name in ("encoder", "decoder"):
            if isinstance(part := getattr(self, name, None), nn.Module):
                part.compile(*args, **kwargs)

    @abstractmethod
    def encode(self, x: Tensor, *, streamed: bool = False) -> DiagonalGaussian:
        """Pictures [B,C,H,W] → the distribution of their latents, with logvar −∞ for no noise.

        streamed: in less memory, if supported.
        """

    @abstractmethod
    def decode(self, z: Tensor, *, streamed: bool = False) -> Tensor:
        """Latents [B,C,h,w] → pictures [B,C,H,W], about in [-1,1]."""


class DenoiserNetwork(nn.Module, ABC):
    """Noisy latents, time steps and conditions to a prediction, for `NetworkDenoiser`."""

    config: DenoiserConfig

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        cond: Conditioning,
        *,
        perturbed: Sequence[Perturbation | None] = (),
        control: Sequence[Tensor] = (),
        deep: DeepFeatures | None = None,
    ) -> Tensor:
        """Latents [B,C,H,W] at time steps [B] under conditions → [B,C,H,W].

        perturbed: as in `CallOptions`; control: the sum of the outputs of `ControlBranch`es; deep:
        features to reuse, or to set if it has none; None to compute everything. Raises UndustError
        for those that the network does not support, and for a missing condition.
        """

    @abstractmethod
    def start_at_zero(self) -> None:
        """Initialises the output to zero, and residual branches as published, for training."""
