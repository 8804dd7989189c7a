"""Encoder and decoder between pictures and latents, shared by the KL and the VQ first stage."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, zip_longest
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from undust.networks.attention import PixelAttention
from undust.networks.base import FirstStageNetwork
from undust.networks.config import EncoderDecoderConfig
from undust.networks.layers import Downsample, ResnetBlock, Upsample, silu
from undust.networks.streaming import activated, convolved, held, kept, streamed

EPS = 1e-6
LARGE = 1024 * 1024  # pixels; larger pictures are streamed
C = TypeVar("C", bound=EncoderDecoderConfig)


class Level(nn.Module):
    """Residual blocks at one resolution, then the change to the next resolution.

    attention: whether self-attention over all pixels follows each block; step: the published name
    of the resampling layer and the layer; None for the last level.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        groups: int,
        attention: bool,
        step: tuple[str, nn.Module] | None,
    ) -> None:
        super().__init__()
        channels = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(
            ResnetBlock(a, b, groups=groups, eps=EPS) for a, b in pairwise(channels)
        )
        self.attentions = nn.ModuleList(
            PixelAttention(out_channels, groups=groups, eps=EPS) for _ in range(layers * attention)
        )
        self._step = step and step[0]
        if step is not None:
            name, layer = step
            self.add_module(name, nn.Sequential(layer))

    def __iter__(self) -> Iterator[nn.Module]:
        """The layers in order."""
        for block, *attention in zip_longest(self.resnets, self.attentions):
            yield from filter(None, (block, *attention))
        if self._step:
            yield from self.get_submodule(self._step).children()

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] → [B,C',H',W']."""
        for layer in self:
            x = layer(x)
        return x


class Mid(nn.Module):
    """Two residual blocks around one attention over all pixels."""

    def __init__(self, channels: int, *, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, groups=groups, eps=EPS) for _ in range(2)
        )
        attentions = [PixelAttention(channels, groups=groups, eps=EPS)] if attention else []
        self.attentions = nn.Sequential(*attentions)

    def __iter__(self) -> Iterator[nn.Module]:
        """The layers in order."""
        before, after = self.resnets
        return iter((before, *self.attentions, after))

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] → [B,C,H,W]."""
        for layer in self:
            x = layer(x)
        return x


def _layers(levels: nn.Sequential) -> Iterator[nn.Module]:
    """The layers of levels, in order."""
    for level in levels:
        assert isinstance(level, Level)
        yield from level


class Encoder(nn.Module):
    """Pictures to latents, or to the mean and log variance of latents; out_channels: of both."""

    def __init__(self, config: EncoderDecoderConfig, out_channels: int) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.Sequential()
        for i, (before, width) in enumerate(pairwise((widths[0], *widths))):
            last = i == len(widths) - 1
            level = Level(
                before,
                width,
                layers=config.layers_per_block,
                groups=groups,
                attention=config.down_block_types[i] == "AttnDownEncoderBlock2D",
                step=None if last else ("downsamplers", Downsample(width, padding=0)),
            )
            self.down_blocks.append(level)
        self.mid_block = Mid(widths[-1], groups=groups, attention=config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] → [B,out_channels,H/f,W/f]."""
        x = self.mid_block(self.down_blocks(self.conv_in(x)))
        return self.conv_out(silu(self.conv_norm_out(x)))

    def streamed(self, x: Tensor) -> Tensor:
        """As `forward`, up to rounding, for one picture [1,3,H,W] and in less memory."""
        y = convolved(self.conv_in, held(x.contiguous(memory_format=torch.channels_last)))
        for layer in (*_layers(self.down_blocks), *self.mid_block):
            y = streamed(layer, y)
        return kept(convolved(self.conv_out, activated(self.conv_norm_out, y)))


class Decoder(nn.Module):
    """Latents to pictures."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Mid(widths[0], groups=groups, attention=config.mid_block_add_attention)
        self.up_blocks = nn.Sequential()
        for i, (before, width) in enumerate(pairwise((widths[0], *widths))):
            last = i == len(widths) - 1
            level = Level(
                before,
                width,
                layers=config.layers_per_block + 1,
                groups=groups,
                attention=config.up_block_types[i] == "AttnUpDecoderBlock2D",
                step=None if last else ("upsamplers", Upsample(width)),
            )
            self.up_blocks.append(level)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """[B,latent,h,w] → [B,3,f·h,f·w]."""
        x = self.up_blocks(self.mid_block(self.conv_in(z)))
        return self.conv_out(silu(self.conv_norm_out(x)))

    def streamed(self, z: Tensor) -> Tensor:
        """As `forward`, up to rounding, for one latent [1,latent,h,w] and in less memory."""
        layers = [*self.mid_block, *_layers(self.up_blocks)]
        upsamples = [layer for layer in layers if isinstance(layer, Upsample)]
        y = convolved(self.conv_in, held(z.contiguous(memory_format=torch.channels_last)))
        for layer in layers:
            y = streamed(layer, y)
            # The last upsampling's output would be the largest tensor of all, so its input is kept
            # and it is recomputed on each access.
            if layer in upsamples[:-1]:
                y = held(kept(y))
        return kept(convolved(self.conv_out, activated(self.conv_norm_out, y)))


class ConvolutionalFirstStage(FirstStageNetwork, Generic[C]):
    """The sizes of first stages whose configuration has levels, each half as large as the last."""

    config: C

    @property
    def image_channels(self) -> int:
        """The channels of the pictures."""
        return self.config.in_channels

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height of the pictures that it was trained on."""
        size = self.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return width, height

    @property
    def latent_channels(self) -> int:
        """The channels of the latents."""
        return self.config.latent_channels

    @property
    def downsampling_factor(self) -> int:
        """Pixels along a side for one latent pixel."""
        return 2 ** (len(self.config.block_out_channels) - 1)


class EncoderDecoderNetwork(ConvolutionalFirstStage[C]):
    """The common part of first stages made of `Encoder` and `Decoder`.

    A subclass sets the members below under their published names.
    """

    encoder: Encoder
    decoder: Decoder
    quant_conv: nn.Module
    post_quant_conv: nn.Module

    @property
    def last_layer(self) -> Tensor:
        """The weight whose gradients balance an adversarial loss against the others."""
        return self.decoder.conv_out.weight

    def _encoded(self, x: Tensor, *, streamed: bool) -> Tensor:
        """Pictures [B,3,H,W] → the output of `quant_conv` [B,…,H/f,W/f].

        Pictures of more than `LARGE` pixels, and smaller ones if `streamed`, are processed one by
        one in strips, which is exact up to rounding and takes a third of the memory. With gradients
        they are processed whole.
        """
        streamed = streamed or x.shape[2] * x.shape[3] > LARGE
        return self.quant_conv(self._run(self.encoder, x, streamed=streamed))

    def _decoded(self, z: Tensor, *, streamed: bool) -> Tensor:
        """The input of `post_quant_conv` [B,…,h,w] → pictures [B,3,f·h,f·w].

        Large pictures are streamed as in `_encoded`.
        """
        streamed = streamed or z.shape[2] * z.shape[3] * self.downsampling_factor**2 > LARGE
        return self._run(self.decoder, self.post_quant_conv(z), streamed=streamed)

    def _run(self, half: Encoder | Decoder, x: Tensor, *, streamed: bool) -> Tensor:
        grad = torch.is_grad_enabled() and (x.requires_grad or self.last_layer.requires_grad)
        if grad or not streamed:
            return half(x)
        return torch.cat([half.streamed(one) for one in x.split(1)]).contiguous()
