"""Attention over pixels: single blocks and the U-Net's transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TRANSFORMER_NORM_EPS = 1e-6
SHORT = 256  # tokens; up to here a CPU trains faster without the fused kernel


class Perturbation(Protocol):
    """The replacement of self-attention for some pictures of a batch."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
        shape: tuple[int, int],
    ) -> Tensor:
        """q, k, v [B, N, C] of N = H·W pixels → [B, N, C]; attend: self-attention as it was."""
        ...


Rows = tuple[Tensor, Callable[..., Tensor]]
"""Batch indices [K] and the function that replaces `attend` for them."""


def attend(q: Tensor, k: Tensor, v: Tensor, *, heads: int, causal: bool = False) -> Tensor:
    """Multi-head attention of queries [B,N,C] over keys and values [B,M,C] → [B,N,C].

    Vaswani et al. 2017, eq. 1; causal: token n attends to tokens 0 … n only. The backward pass of
    the CPU's fused kernel is slow for short sequences: there the equation is computed directly,
    which makes a training step 1.39 times as fast (benchmarks/attention_backward.py).
    """
    q, k, v = (tokens.reshape(*tokens.shape[:2], heads, -1).transpose(1, 2) for tokens in (q, k, v))
    if q.requires_grad and q.device.type == "cpu" and max(q.shape[2], k.shape[2]) <= SHORT:
        weights = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        if causal:
            later = torch.ones(weights.shape[2:], dtype=torch.bool).triu(1)
            weights = weights.masked_fill(later, -torch.inf)
        attended = weights.softmax(-1) @ v
    else:
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return attended.transpose(1, 2).flatten(2)


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _picture(tokens: Tensor, shape: torch.Size) -> Tensor:
    return tokens.transpose(1, 2).reshape(shape)


class Attention(nn.Module):
    """Multi-head cross-attention to a context, or self-attention without one."""

    def __init__(
        self, channels: int, *, heads: int, context_channels: int | None = None, bias: bool = False
    ) -> None:
        super().__init__()
        context_channels = context_channels or channels
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context_channels, channels, bias=bias)
        self.to_v = nn.Linear(context_channels, channels, bias=bias)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(
        self, x: Tensor, context: Tensor | None = None, instead: Sequence[Rows] = ()
    ) -> Tensor:
        """Tokens x [B,N,C], context [B,M,D] → [B,N,C]; instead: replacements for some rows."""
        q, (k, v) = self.to_q(x), self.keys_and_values(x if context is None else context)
        attended = attend(q, k, v, heads=self.heads)
        for rows, other in instead:
            own = partial(attend, heads=self.heads)
            changed = other(q[rows], k[rows], v[rows], attend=own)
            attended = attended.index_copy(0, rows, changed)
        return self.to_out(attended)

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Of a context [B,M,D], both [B,M,C]."""
        return self.to_k(context), self.to_v(context)


class TokenPooling(nn.Module):
    """Attention pooling: a learnt query plus the tokens' mean attends to the tokens and itself.

    As in CLIP's picture encoder (Radford et al. 2021, section 2.4), over text tokens.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(1, channels))
        # A division would import torch's compiler where networks are made without weights.
        nn.init.normal_(self.positional_embedding, std=channels**-0.5)
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,T,D] → [B,D]."""
        query = tokens.mean(1, keepdim=True) + self.positional_embedding
        seen = torch.cat([query, tokens], dim=1)
        q, k, v = self.q_proj(query), self.k_proj(seen), self.v_proj(seen)
        return attend(q, k, v, heads=self.heads)[:, 0]


class TokenEmbedding(nn.Module):
    """The tokens pooled to one vector for the time embedding (Saharia et al. 2022, 2.1)."""

    def __init__(self, channels: int, out_channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.pool = TokenPooling(channels, heads)
        self.proj = nn.Linear(channels, out_channels)
        self.norm2 = nn.LayerNorm(out_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,T,D] → [B,out]."""
        return self.norm2(self.proj(self.pool(self.norm1(tokens))))


class PixelAttention(Attention):
    """Self-attention over all pixels, with normalisation and a skip connection.

    groups: of the normalisation, 0 without one.
    """

    def __init__(self, channels: int, *, groups: int, eps: float, heads: int = 1) -> None:
        super().__init__(channels, heads=heads, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps) if groups else None

    def forward(
        self, x: Tensor, context: Tensor | None = None, instead: Sequence[Rows] = ()
    ) -> Tensor:
        """[B,C,H,W] → [B,C,H,W]."""
        tokens = _tokens(x if self.group_norm is None else self.group_norm(x))
        return x + _picture(super().forward(tokens, context, instead), x.shape)


class GEGLU(nn.Module):
    """A gated linear layer: half of the output gates the other half (Shazeer 2020)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B,N,C] → [B,N,out]."""
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class ApproximateGELU(nn.Module):
    """A linear layer and GELU by its approximation with tanh (Hendrycks & Gimpel 2016)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B,N,C] → [B,N,out]."""
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """The feed-forward layers of a transformer block, with a hidden width of 4C.

    first: the class of the first layer and its activation.
    """

    def __init__(self, channels: int, first: type[GEGLU | ApproximateGELU] = GEGLU) -> None:
        super().__init__()
        # The published keys number a dropout layer between the two.
        self.net = nn.Sequential(
            first(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B,N,C] → [B,N,C]."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward: pre-normalised, with skip connections.

    only_cross: the first attention is cross-attention too.
    """

    def __init__(
        self, channels: int, *, heads: int, context_channels: int, only_cross: bool = False
    ) -> None:
        super().__init__()
        self.only_cross = only_cross
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(
            channels, heads=heads, context_channels=context_channels if only_cross else None
        )
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads=heads, context_channels=context_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor, instead: Sequence[Rows] = ()) -> Tensor:
        """Tokens x [B,N,C], context [B,M,D] → [B,N,C]; instead: of self-attention, by rows."""
        x = x + self.attn1(self.norm1(x), context if self.only_cross else None, instead)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a picture (Rombach et al. 2022, section 3.3).

    linear: the projections in and out are linear layers, otherwise 1×1 convolutions; both are
    published.
    """

    def __init__(
        self,
        channels: int,
        *,
        depth: int,
        heads: int,
        context_channels: int,
        groups: int,
        linear: bool,
        only_cross: bool = False,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, TRANSFORMER_NORM_EPS)
        self.proj_in = _projection(channels, linear)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(
                channels, heads=heads, context_channels=context_channels, only_cross=only_cross
            )
            for _ in range(depth)
        )
        self.proj_out = _projection(channels, linear)

    @property
    def blocks(self) -> list[TransformerBlock]:
        """The transformer blocks in order."""
        return [cast(TransformerBlock, block) for block in self.transformer_blocks]

    def forward(self, x: Tensor, context: Tensor, instead: Sequence[Rows] = ()) -> Tensor:
        """Picture x [B,C,H,W], context [B,M,D] → [B,C,H,W]; instead: of self-attention, by rows."""
        h = self.norm(x)
        # In `channels_last` neither conversion between pixels and tokens copies.
        h = self.proj_in(_tokens(h)) if self.linear else _tokens(self.proj_in(h))
        for block in self.blocks:
            h = block(h, context, instead)
        if self.linear:
            return x + _picture(self.proj_out(h), x.shape)
        return x + self.proj_out(_picture(h, x.shape))


def replaced(perturbed: Sequence[Perturbation | None], x: Tensor) -> Iterator[Rows]:
    """The rows of x [B,C,H,W] grouped by the replacement of their self-attention.

    perturbed: for each of the B pictures, the replacement, or None.
    """
    for kind in dict.fromkeys(perturbed):
        if kind is not None:
            places = [place for place, other in enumerate(perturbed) if other == kind]
            yield (
                torch.tensor(places, device=x.device),
                partial(kind, shape=(x.shape[2], x.shape[3])),
            )


def _projection(channels: int, linear: bool) -> nn.Module:
    return nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
