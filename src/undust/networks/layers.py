"""Convolutional layers shared by the U-Net and the autoencoder.

Attribute names are the published key names. No memory format is fixed: an input in
`torch.channels_last` (fast on CPUs) keeps it throughout.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResnetBlock(nn.Module):
    """A residual block of two normalised convolutions, conditioned on the time embedding.

    He et al. 2016, as in Ho et al. 2020. The embedding shifts every channel; with `scaled` it also
    scales them, after the norm (Dhariwal & Nichol 2021, section 3.1, AdaGN). time_channels: width
    of the embedding, None without one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        time_channels: int | None = None,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.scaled = scaled
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        width = (2 if scaled else 1) * out_channels
        self.time_emb_proj = nn.Linear(time_channels, width) if time_channels else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.conv_shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """[B,in,H,W] and an activated time embedding [B,time_channels] → [B,out,H,W]."""
        h = self.conv1(silu(self.norm1(x)))
        temb = None if self.time_emb_proj is None else self.time_emb_proj(time)
        if temb is not None and self.scaled:
            # In this order: OpenVINO 2026.4 crashes on halves of [B,2C,1,1].
            scale, shift = (half[:, :, None, None] for half in temb.chunk(2, dim=1))
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h if temb is None else h + temb[:, :, None, None])
        h = self.conv2(silu(h))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that is not needed afterwards: in its memory, if there are no gradients."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class Downsample(nn.Module):
    """Halves height and width with a strided convolution.

    padding: 0 pads right and below only, as in the first stage of Rombach et al. 2022.
    """

    def __init__(self, channels: int, *, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] → [B,C,H/2,W/2], odd sizes rounded up (down with `padding=0`)."""
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, or to a given size, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """[B,C,H,W] → [B,C,*size], by default [B,C,2H,2W]."""
        size = size or (2 * x.shape[-2], 2 * x.shape[-1])
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class TimestepEmbedding(nn.Module):
    """Two linear layers over a sinusoidal embedding; hidden: between them, None for out."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int | None = None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, hidden or out_channels)
        self.linear_2 = nn.Linear(hidden or out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B,in] → [B,out]."""
        return self.linear_2(F.silu(self.linear_1(x)))


def sinusoids(timestep: Tensor, channels: int, *, cos_first: bool, freq_shift: float) -> Tensor:
    """Sines and cosines of time steps [B], periods 2π to 2π·10⁴ → float32 [B,channels].

    Vaswani et al. 2017, section 3.5; an odd last channel stays zero.
    """
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=timestep.device)
    angles = timestep.float()[:, None] * torch.exp(-math.log(1e4) / (half - freq_shift) * index)
    sin, cos = angles.sin(), angles.cos()
    waves = torch.cat([cos, sin] if cos_first else [sin, cos], dim=-1)
    return F.pad(waves, (0, channels - 2 * half))
