"""A tiny first stage that imitates another one, for previews (Bohan 2023, TAESD)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from undust.networks.base import DiagonalGaussian, FirstStageNetwork
from undust.networks.config import TinyConfig

RANGE = 3.0  # latents are squeezed smoothly into [-RANGE, RANGE] before decoding


class TinyBlock(nn.Module):
    """Three convolutions with a skip connection, without normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] → [B,C,H,W]."""
        return torch.relu(self.conv(x) + x)


class TinyEncoder(nn.Module):
    """Pictures to latents."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        width = config.encoder_block_out_channels[0]
        layers: list[nn.Module] = []
        for level, blocks in enumerate(config.num_encoder_blocks):
            if level:
                layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
            else:
                layers.append(nn.Conv2d(config.in_channels, width, 3, padding=1))
            layers += [TinyBlock(width) for _ in range(blocks)]
        layers.append(nn.Conv2d(width, config.latent_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] in [-1,1] → [B,C,H/f,W/f]."""
        return self.layers((x + 1) / 2)


class TinyDecoder(nn.Module):
    """Latents to pictures."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        width, levels = config.decoder_block_out_channels[0], len(config.num_decoder_blocks)
        layers: list[nn.Module] = []
        layers += [nn.Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU()]
        for level, blocks in enumerate(config.num_decoder_blocks, 1):
            layers += [TinyBlock(width) for _ in range(blocks)]
            if level < levels:
                layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
                layers.append(nn.Conv2d(width, width, 3, padding=1, bias=False))
        layers.append(nn.Conv2d(width, config.out_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """[B,C,h,w] → [B,3,f·h,f·w]."""
        return 2 * self.layers(RANGE * torch.tanh(z / RANGE)) - 1


class TinyAutoencoder(FirstStageNetwork):
    """The tiny autoencoder; keys as AutoencoderTiny's.

    Its latents are the scaled latents of the first stage that it imitates, whose scale its
    configuration does not have.
    """

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TinyEncoder(config)
        self.decoder = TinyDecoder(config)

    @property
    def image_channels(self) -> int:
        """The channels of the pictures."""
        return self.config.in_channels

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height of the pictures that it was trained on."""
        return self.config.sample_size, self.config.sample_size

    @property
    def latent_channels(self) -> int:
        """The channels of the latents."""
        return self.config.latent_channels

    @property
    def downsampling_factor(self) -> int:
        """Pixels along a side for one latent pixel."""
        return 2 ** (len(self.config.num_decoder_blocks) - 1)

    @property
    def last_layer(self) -> Tensor:
        """The weight whose gradients balance an adversarial loss against the others."""
        return cast(nn.Conv2d, self.decoder.layers[-1]).weight

    def scale(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:  # noqa: ARG002
        """(s, m) for latents z [B,C,h,w]: denoisers are trained on (z − m)·s."""
        return self.config.scaling_factor, self.config.shift_factor

    def encode(self, x: Tensor, *, streamed: bool = False) -> DiagonalGaussian:  # noqa: ARG002
        """Pictures [B,3,H,W] in [-1,1] → latents [B,C,H/f,W/f], without noise."""
        z = self.encoder(x)
        return DiagonalGaussian(z, torch.full_like(z, -torch.inf))

    def decode(self, z: Tensor, *, streamed: bool = False) -> Tensor:  # noqa: ARG002
        """Latents [B,C,h,w] → pictures [B,3,f·h,f·w], about in [-1,1]."""
        return self.decoder(z)
