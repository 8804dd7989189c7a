"""Stable Video Diffusion's networks (Blattmann et al. 2023b): U-Net and temporal decoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undust.errors import UndustError
from undust.networks.attention import Perturbation, PixelAttention
from undust.networks.base import DiagonalGaussian
from undust.networks.conditioning import Conditioning
from undust.networks.config import SpatioTemporalUNetConfig, TemporalAutoencoderConfig
from undust.networks.deep_cache import DeepFeatures
from undust.networks.encoder_decoder import EPS, ConvolutionalFirstStage, Encoder
from undust.networks.layers import Upsample, silu
from undust.networks.temporal import SpatioTemporalResnet
from undust.networks.unet import AnyUNet

TEMPORAL_EPS = 1e-5  # of the decoder's layers over frames


class SpatioTemporalUNet(AnyUNet):
    """The U-Net over films; keys as UNetSpatioTemporalConditionModel's.

    Conditions: the embedding of the first frame as `text` [B,1,D], `size_ids` [B,3] (frames a
    second less 1, motion bucket, deviation of the noise on the first frame), and the latent of the
    first frame for each frame as `extra_channels` [B,F,C,H,W].
    """

    config: SpatioTemporalUNetConfig  # pyright: ignore[reportIncompatibleVariableOverride]

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
        """Films [B,F,C,H,W] at time steps [B] under conditions → [B,F,C,H,W].

        Raises UndustError for a missing condition, and for options of networks over pictures.
        """
        if any(perturbed) or control or deep is not None:
            raise UndustError(
                "perturbed attention, ControlNets and cached features are not for films"
            )
        if cond.text is None:
            raise UndustError("this network needs the embedding of a picture")
        time = self.embed(timestep, cond, x.dtype)
        states = self.down(self.conv_in(cond.network_input(x).flatten(0, 1)), time, cond.text)
        h = states[-1]
        if self.mid_block is not None:
            h = self.mid_block(h, time, cond.text)
        for block in self.up_blocks:
            h = block(h, states, time, cond.text)
        h = self.conv_out(F.silu(self.conv_norm_out(h)))
        return h.unflatten(0, x.shape[:2])


def _resnets(channels: Sequence[int], groups: int) -> nn.ModuleList:
    """Blocks from each of the numbers of channels to the next."""
    return nn.ModuleList(
        SpatioTemporalResnet(
            before,
            after,
            groups=groups,
            eps=EPS,
            temporal_eps=TEMPORAL_EPS,
            switched=True,
            start=0.0,
        )
        for before, after in pairwise(channels)
    )


class TemporalMid(nn.Module):
    """Residual blocks around one attention over all pixels of a frame."""

    def __init__(self, channels: int, *, layers: int, groups: int) -> None:
        super().__init__()
        self.resnets = _resnets([channels] * (layers + 1), groups)
        self.attentions = nn.ModuleList([PixelAttention(channels, groups=groups, eps=EPS)])

    def forward(self, x: Tensor) -> Tensor:
        """[F,C,H,W] → [F,C,H,W]."""
        first, *rest = self.resnets
        x = first(x)
        # As published: blocks beyond the second are not computed.
        for attention, resnet in zip(self.attentions, rest, strict=False):
            x = resnet(attention(x))
        return x


class TemporalLevel(nn.Module):
    """Residual blocks at one resolution, then upsampling, but at the last."""

    def __init__(self, before: int, after: int, *, layers: int, groups: int, last: bool) -> None:
        super().__init__()
        self.resnets = _resnets([before] + [after] * layers, groups)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(after)])

    def forward(self, x: Tensor) -> Tensor:
        """[F,C,H,W] → [F,C',H',W']."""
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class TemporalDecoder(nn.Module):
    """Latents of a film to its frames."""

    def __init__(self, config: TemporalAutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        layers, pixels = config.layers_per_block, config.out_channels
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = TemporalMid(widths[0], layers=layers, groups=groups)
        self.up_blocks = nn.Sequential(
            *(
                TemporalLevel(
                    *channels, layers=layers + 1, groups=groups, last=place == len(widths) - 1
                )
                for place, channels in enumerate(pairwise((widths[0], *widths)))
            )
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], pixels, 3, padding=1)
        self.time_conv_out = nn.Conv3d(pixels, pixels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, z: Tensor) -> Tensor:
        """[F,latent,h,w] → [F,3,f·h,f·w]."""
        x = self.up_blocks(self.mid_block(self.conv_in(z)))
        x = self.conv_out(silu(self.conv_norm_out(x)))
        return self.time_conv_out(x.transpose(0, 1)[None])[0].transpose(0, 1)


class TemporalAutoencoder(ConvolutionalFirstStage[TemporalAutoencoderConfig]):
    """The KL autoencoder with a decoder over films; keys as AutoencoderKLTemporalDecoder's."""

    def __init__(self, config: TemporalAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        moments = 2 * config.latent_channels
        self.encoder = Encoder(config, moments)
        self.decoder = TemporalDecoder(config)
        self.quant_conv = nn.Conv2d(moments, moments, 1)

    @property
    def latent_space(self) -> tuple[float, ...]:
        """Channels, factor and scale of its latents."""
        return *super().latent_space, self.config.scaling_factor

    def scale(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:  # noqa: ARG002
        """(s, 0): denoisers are trained on s·z."""
        return self.config.scaling_factor, 0.0

    def encode(self, x: Tensor, *, streamed: bool = False) -> DiagonalGaussian:  # noqa: ARG002
        """Frames [F,3,H,W] in [-1,1], each alone → the distribution of latents [F,C,H/f,W/f]."""
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar.clamp(-30, 20))

    def decode(self, z: Tensor, *, streamed: bool = False) -> Tensor:
        """Unscaled latents [F,C,h,w] of one film → its frames [F,3,f·h,f·w], about in [-1,1].

        streamed: one frame at a time, in less memory; frames then do not see their neighbours.
        """
        if streamed:
            return torch.cat([self.decoder(frame) for frame in z.split(1)])
        return self.decoder(z)
