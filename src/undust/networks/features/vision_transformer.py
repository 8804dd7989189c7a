"""Vision transformers: CLIP's (Radford et al. 2021) and DINOv2 (Oquab et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undust.networks.attention import attend
from undust.networks.features.base import FeatureNetwork
from undust.networks.text_encoder import QuickGELU


@dataclass(frozen=True)
class VisionTransformerShape:
    """The sizes of a vision transformer and the parts that its kind has.

    image_size: pixels along a side for which it has position embeddings; hidden: channels of a
    feed-forward part; gated: whether that is a SwiGLU; pre_norm, scaled: whether there is a norm
    before the layers, and a factor for each channel of a branch (LayerScale); projection: channels
    of the projected class token, None without a projection; colours: their mean and deviation in
    [0, 1].
    """

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    image_size: int
    eps: float
    colours: tuple[Sequence[float], Sequence[float]]
    quick_gelu: bool = False
    gated: bool = False
    pre_norm: bool = False
    scaled: bool = False
    patch_bias: bool = False
    projection: int | None = None


class VisionFeedForward(nn.Module):
    """Two linear layers around a GELU, or around a gate (SwiGLU, Shazeer 2020)."""

    def __init__(self, shape: VisionTransformerShape) -> None:
        super().__init__()
        self.gated = shape.gated
        self.fc1 = nn.Linear(shape.width, shape.hidden * (2 if shape.gated else 1))
        self.fc2 = nn.Linear(shape.hidden, shape.width)
        self.act = QuickGELU() if shape.quick_gelu else nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,D] → [B,T,D]."""
        h = self.fc1(x)
        if not self.gated:
            return self.fc2(self.act(h))
        gate, value = h.chunk(2, -1)
        return self.fc2(F.silu(gate) * value)


class VisionLayer(nn.Module):
    """Attention and feed-forward, pre-normalised, with skip connections."""

    def __init__(self, shape: VisionTransformerShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm1 = nn.LayerNorm(shape.width, shape.eps)
        self.q = nn.Linear(shape.width, shape.width)
        self.k = nn.Linear(shape.width, shape.width)
        self.v = nn.Linear(shape.width, shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.norm2 = nn.LayerNorm(shape.width, shape.eps)
        self.mlp = VisionFeedForward(shape)
        self.scale1 = nn.Parameter(torch.ones(shape.width)) if shape.scaled else None
        self.scale2 = nn.Parameter(torch.ones(shape.width)) if shape.scaled else None

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,D] → [B,T,D]."""
        h = self.norm1(x)
        h = self.out(attend(self.q(h), self.k(h), self.v(h), heads=self.heads))
        x = x + (h if self.scale1 is None else h * self.scale1)
        h = self.mlp(self.norm2(x))
        return x + (h if self.scale2 is None else h * self.scale2)


class VisionTransformer(FeatureNetwork):
    """A class token and patches of a picture through a transformer.

    side: `image_size`, but at most 224, as in published evaluations with DINOv2.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: VisionTransformerShape, name: str) -> None:
        super().__init__()
        self.name, self.shape = name, shape
        self.side = min(224, shape.image_size)
        width = shape.width
        self.patches = nn.Conv2d(3, width, shape.patch, shape.patch, bias=shape.patch_bias)
        self.token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(
            torch.zeros(1 + (shape.image_size // shape.patch) ** 2, width)
        )
        self.pre_norm = nn.LayerNorm(width, shape.eps) if shape.pre_norm else nn.Identity()
        self.layers = nn.ModuleList(VisionLayer(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(width, shape.eps)
        self.projection = (
            nn.Linear(width, shape.projection, bias=False) if shape.projection else nn.Identity()
        )
        for key, value in zip(("mean", "std"), shape.colours, strict=True):
            colours = torch.tensor(value, device="cpu")[:, None, None]
            self.register_buffer(key, colours, persistent=False)
        self.eval()

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """The last layer's patches [B,D,h,w], of pictures cropped to whole patches."""
        self.require_side(x, self.shape.patch)
        height, width = (length // self.shape.patch for length in x.shape[-2:])
        patches = self._tokens(x)[:, 1:]
        return (patches.transpose(1, 2).unflatten(2, (height, width)),)

    def pooled(self, x: Tensor) -> Tensor:
        """The class token after the last norm and the projection [B,D]."""
        return self.projection(self._tokens(self.squares(x))[:, 0])

    def _tokens(self, x: Tensor) -> Tensor:
        """All tokens after the last norm [B,1+h·w,D]."""
        x = self.patches(((x / 2 + 0.5 - self.mean) / self.std).to(x))
        height, width = x.shape[-2:]
        token = self.token.expand(len(x), 1, -1)
        x = torch.cat([token, x.flatten(2).transpose(1, 2)], 1) + self._positions(height, width)
        x = self.pre_norm(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def _positions(self, height: int, width: int) -> Tensor:
        """Position embeddings for so many patches [1+h·w,D]: interpolated from those it has."""
        side = math.isqrt(len(self.positions) - 1)
        if (height, width) == (side, side):
            return self.positions
        square = self.positions[1:].T.reshape(1, -1, side, side)
        fitted = F.interpolate(square, (height, width), mode="bicubic", align_corners=False)
        return torch.cat([self.positions[:1], fitted[0].flatten(1).T])
