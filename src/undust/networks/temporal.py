"""Layers over the frames of a film: a layer over pixels, one over frames, and a blend of the two.

Blattmann et al. 2023a (Align Your Latents) and 2023b (Stable Video Diffusion). Frames are entries
of the batch, [B·F,C,H,W]; conditions have one entry for each film, which tells how many frames it
has. Attribute names are the published (diffusers) key names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from undust.networks.attention import (
    TRANSFORMER_NORM_EPS,
    Attention,
    FeedForward,
    Rows,
    TransformerBlock,
)
from undust.networks.layers import ResnetBlock, TimestepEmbedding, silu, sinusoids


class Blend(nn.Module):
    """α·spatial + (1 − α)·temporal with the learnt α = sigmoid(mix_factor).

    switched: with 1 − α in place of α, as in the temporal decoder; start: the initial mix_factor.
    """

    def __init__(self, *, switched: bool = False, start: float = 0.5) -> None:
        super().__init__()
        self.switched = switched
        self.mix_factor = nn.Parameter(torch.tensor([start]))

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """Two tensors of one shape → their blend."""
        share = self.mix_factor.to(spatial.dtype).sigmoid()
        if self.switched:
            share = 1 - share
        return torch.lerp(temporal, spatial, share)


class TemporalResnetBlock(nn.Module):
    """A residual block of two convolutions over three frames; time_channels: as `ResnetBlock`."""

    def __init__(
        self, channels: int, *, groups: int, eps: float, time_channels: int | None
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps)
        self.conv1 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        self.time_emb_proj = nn.Linear(time_channels, channels) if time_channels else None
        self.norm2 = nn.GroupNorm(groups, channels, eps)
        self.conv2 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """[B,C,F,H,W] and an activated time embedding [B,time_channels] → [B,C,F,H,W]."""
        h = self.conv1(silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None, None]
        return x + self.conv2(silu(self.norm2(h)))


class SpatioTemporalResnet(nn.Module):
    """A residual block over pixels, then one over frames, and their blend.

    temporal_eps: ε of the latter's normalisation; switched, start: as of `Blend`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        temporal_eps: float,
        time_channels: int | None = None,
        switched: bool = False,
        start: float = 0.5,
    ) -> None:
        super().__init__()
        self.spatial_res_block = ResnetBlock(
            in_channels, out_channels, groups=groups, eps=eps, time_channels=time_channels
        )
        self.temporal_res_block = TemporalResnetBlock(
            out_channels, groups=groups, eps=temporal_eps, time_channels=time_channels
        )
        self.time_mixer = Blend(switched=switched, start=start)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """[B·F,in,H,W] and a time embedding [B,time_channels], or one film → [B·F,out,H,W]."""
        films = 1 if time is None else len(time)
        frames = len(x) // films
        each = None if time is None else time.repeat_interleave(frames, 0)
        x = self.spatial_res_block(x, each)
        film = x.unflatten(0, (films, frames)).transpose(1, 2)
        mixed = self.time_mixer(film, self.temporal_res_block(film, time))
        return mixed.transpose(1, 2).flatten(0, 1)


class TemporalTransformerBlock(nn.Module):
    """Feed-forward, self-attention over frames, cross-attention, feed-forward."""

    def __init__(self, channels: int, *, heads: int, context_channels: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(channels)
        self.ff_in = FeedForward(channels)
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads=heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads=heads, context_channels=context_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Frames at each pixel x [B,N,F,C], a film's context [B,M,D] → [B,N,F,C]."""
        h = x.flatten(0, 1)
        h = h + self.ff_in(self.norm_in(h))
        h = h + self.attn1(self.norm1(h))
        # Queries do not see one another here, so those of a film share its keys and values.
        h = h.reshape(len(x), -1, h.shape[-1])
        h = h + self.attn2(self.norm2(h), context)
        return (h + self.ff(self.norm3(h))).reshape(x.shape)


class SpatioTemporalTransformer(nn.Module):
    """Transformer blocks over pixels and over frames, which know their places, in turn."""

    def __init__(
        self, channels: int, *, depth: int, heads: int, context_channels: int, groups: int
    ) -> None:
        super().__init__()
        self.channels = channels
        self.norm = nn.GroupNorm(groups, channels, TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads=heads, context_channels=context_channels)
            for _ in range(depth)
        )
        self.temporal_transformer_blocks = nn.ModuleList(
            TemporalTransformerBlock(channels, heads=heads, context_channels=context_channels)
            for _ in range(depth)
        )
        self.time_pos_embed = TimestepEmbedding(channels, channels, 4 * channels)
        self.time_mixer = Blend()
        self.proj_out = nn.Linear(channels, channels)

    @property
    def blocks(self) -> list[TransformerBlock]:
        """The transformer blocks over pixels in order."""
        return [cast(TransformerBlock, block) for block in self.transformer_blocks]

    def forward(self, x: Tensor, context: Tensor, instead: Sequence[Rows] = ()) -> Tensor:
        """Frames x [B·F,C,H,W], a film's context [B,M,D] → [B·F,C,H,W]; instead: of no frame."""
        assert not instead
        films, frames = len(context), len(x) // len(context)
        index = torch.arange(frames, device=x.device)
        waves = sinusoids(index, self.channels, cos_first=True, freq_shift=0)
        places = self.time_pos_embed(waves.to(x.dtype))
        each = context.repeat_interleave(frames, 0)
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for block, temporal in zip(self.blocks, self.temporal_transformer_blocks, strict=True):
            h = block(h, each)
            film = h.unflatten(0, (films, frames)).transpose(1, 2)  # [B,N,F,C]
            h = self.time_mixer(film, temporal(film + places, context))
            h = h.transpose(1, 2).flatten(0, 1)
        return x + self.proj_out(h).transpose(1, 2).reshape(x.shape)
