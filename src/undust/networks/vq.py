"""The VQ first stage: latents are replaced by the nearest vectors of a codebook."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from undust.networks.base import DiagonalGaussian
from undust.networks.config import VQConfig
from undust.networks.encoder_decoder import Decoder, Encoder, EncoderDecoderNetwork

ROWS = 4096  # latent pixels that are compared with all codes at once


class Codebook(nn.Module):
    """K vectors of C numbers (van den Oord et al. 2017, section 3.1)."""

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, channels)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Latents [B,C,h,w] → the indices of their nearest codes [B,h,w], computed in float32."""
        with torch.autocast(z.device.type, enabled=False):
            codes = self.embedding.weight.float()
            half_squares = codes.square().sum(1) / 2
            # |z − e|²/2 without the part that is the same for all codes.
            rows = z.float().movedim(1, -1).reshape(-1, z.shape[1]).split(ROWS)
            parts = [(half_squares - part @ codes.T).argmin(1) for part in rows]
        return torch.cat(parts).view(len(z), *z.shape[2:])

    def forward(self, index: Tensor) -> Tensor:
        """Indices [B,h,w] → codes [B,C,h,w]."""
        return self.embedding(index).movedim(-1, 1)


class VQAutoencoder(EncoderDecoderNetwork[VQConfig]):
    """The vector-quantised autoencoder; keys as VQModel's.

    Its latents are those before quantisation: a diffusion model works on them, and `decode`
    quantises (Rombach et al. 2022, section 4.3 and appendix D.1).
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        inner, width = config.latent_channels, config.code_width
        self.encoder = Encoder(config, inner)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(inner, width, 1)
        self.quantize = Codebook(config.num_vq_embeddings, width)
        self.post_quant_conv = nn.Conv2d(width, inner, 1)

    @property
    def latent_channels(self) -> int:
        """The channels of the latents."""
        return self.config.code_width

    @property
    def latent_space(self) -> tuple[float, ...]:
        """Channels, factor, scale and shift of its latents."""
        return *super().latent_space, self.config.scaling_factor, 0.0

    def scale(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:  # noqa: ARG002
        """(s, m) for latents z [B,C,h,w]: denoisers are trained on (z − m)·s."""
        return self.config.scaling_factor, 0.0

    def encode(self, x: Tensor, *, streamed: bool = False) -> DiagonalGaussian:
        """Pictures [B,3,H,W] in [-1,1] → latents [B,C,H/f,W/f] before quantisation, no noise."""
        z = self._encoded(x, streamed=streamed)
        return DiagonalGaussian(z, torch.full_like(z, -torch.inf))

    def decode(self, z: Tensor, *, streamed: bool = False) -> Tensor:
        """Unscaled latents [B,C,h,w], which are quantised → pictures [B,3,f·h,f·w]."""
        return self.decode_codes(self.quantize(self.quantize.nearest(z)), streamed=streamed)

    def decode_codes(self, codes: Tensor, *, streamed: bool = False) -> Tensor:
        """Codes [B,C,h,w], taken as they are → pictures [B,3,f·h,f·w]."""
        return self._decoded(codes, streamed=streamed)
