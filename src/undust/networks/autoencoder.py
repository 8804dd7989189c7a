"""The KL first stage: latents are drawn from a normal distribution (Rombach et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from undust.networks.base import DiagonalGaussian
from undust.networks.config import AutoencoderConfig
from undust.networks.encoder_decoder import Decoder, Encoder, EncoderDecoderNetwork


class Autoencoder(EncoderDecoderNetwork[AutoencoderConfig]):
    """The KL autoencoder; keys as AutoencoderKL's."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        moments, latents = 2 * config.latent_channels, config.latent_channels
        self.encoder = Encoder(config, moments)
        self.decoder = Decoder(config)
        # An identity has no weights, so a model without these layers has no such keys.
        self.quant_conv = nn.Conv2d(moments, moments, 1) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = (
            nn.Conv2d(latents, latents, 1) if config.use_post_quant_conv else nn.Identity()
        )

    @property
    def latent_space(self) -> tuple[float, ...]:
        """Channels, factor, scale and shift of its latents, and each channel's own."""
        config = self.config
        each = *(config.latents_mean or ()), *(config.latents_std or ())
        return *super().latent_space, config.scaling_factor, config.shift_factor or 0.0, *each

    def scale(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """(s, m) for latents z [B,C,h,w]: denoisers are trained on (z − m)·s."""
        config = self.config
        if config.latents_mean is None or config.latents_std is None:
            return config.scaling_factor, config.shift_factor or 0.0
        mean, deviation = (
            torch.tensor(each, device=z.device, dtype=z.dtype)[:, None, None]
            for each in (config.latents_mean, config.latents_std)
        )
        return config.scaling_factor / deviation, mean

    def encode(self, x: Tensor, *, streamed: bool = False) -> DiagonalGaussian:
        """Pictures [B,3,H,W] in [-1,1] → the distribution of latents [B,C,H/f,W/f]."""
        mean, logvar = self._encoded(x, streamed=streamed).chunk(2, dim=1)
        # Beyond these bounds the exponential overflows float16, or the variance is zero.
        return DiagonalGaussian(mean, logvar.clamp(-30, 20))

    def decode(self, z: Tensor, *, streamed: bool = False) -> Tensor:
        """Unscaled latents [B,C,h,w] → pictures [B,3,f·h,f·w], about in [-1,1]."""
        return self._decoded(z, streamed=streamed)
