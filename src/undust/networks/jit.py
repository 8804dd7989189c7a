"""JiT: a transformer over large patches of pixels (Li & He 2025).

"Back to Basics: Let Denoising Generative Models Denoise", arXiv 2511.13720. The names of the
weights are those of its code. Differences: the sinusoids are of the time step as the process
counts it (1000·τ for rectified flow, where theirs are of 1 − τ), so that any process can be
used; text is read by cross-attention, which the paper does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undust.errors import UndustError
from undust.networks.attention import Attention, Perturbation, attend
from undust.networks.base import DenoiserNetwork
from undust.networks.conditioning import Conditioning
from undust.networks.config import JiTConfig
from undust.networks.deep_cache import DeepFeatures
from undust.networks.dit import WAVES, labels_or_none, patch_grid, positions, unpatchify
from undust.networks.layers import sinusoids

EPS = 1e-6
STD = 0.02  # of embeddings at the start


class RotaryPositions:
    """Rotary embeddings of the places of a grid (Su et al. 2021), half by rows, half by columns."""

    def __init__(
        self, grid: tuple[int, int], channels: int, step: tuple[float, float], like: Tensor
    ) -> None:
        """channels: of a head; step: between rows and between columns; like: dtype and device."""
        rates = 1e4 ** -(torch.arange(0, channels // 2, 2) / (channels // 2))
        rows, columns = (
            (torch.arange(n) * size)[:, None] * rates for n, size in zip(grid, step, strict=True)
        )
        shape = (*grid, -1)
        angles = torch.cat([rows[:, None].expand(shape), columns[None].expand(shape)], -1)
        angles = angles.flatten(0, 1)[:, None]
        self.cos, self.sin = angles.cos().to(like), angles.sin().to(like)

    def __call__(self, x: Tensor) -> Tensor:
        """Queries or keys [B,N,heads,d], each pair of channels rotated.

        The last tokens are those of the grid; others before them have no place.
        """
        count = len(self.cos)
        others, placed = x.split([x.shape[1] - count, count], dim=1)
        even, odd = placed.unflatten(-1, (-1, 2)).unbind(-1)
        turned = [even * self.cos - odd * self.sin, odd * self.cos + even * self.sin]
        return torch.cat([others, torch.stack(turned, -1).flatten(-2)], 1)


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm in at least float32: torch's for a weight of another precision is slower."""

    def forward(self, x: Tensor) -> Tensor:
        """[…,C] → […,C], in the precision of x."""
        assert self.weight is not None
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), self.normalized_shape, self.weight.to(wide), self.eps).to(x)


class RotaryAttention(nn.Module):
    """Self-attention with normalised queries and keys, rotated by their places."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_norm = RMSNorm(channels // heads, EPS)
        self.k_norm = RMSNorm(channels // heads, EPS)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, rotate: RotaryPositions) -> Tensor:
        """Tokens [B,N,C] → [B,N,C]."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).unbind(2)
        q, k = rotate(self.q_norm(q)), rotate(self.k_norm(k))
        return self.proj(attend(q.flatten(2), k.flatten(2), v.flatten(2), heads=self.heads))


class SwiGLU(nn.Module):
    """Feed-forward layers whose hidden layer is gated by half of it (Shazeer 2020)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(channels, 2 * hidden)
        self.w3 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B,N,C] → [B,N,C]."""
        gate, x = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * x)


class JiTBlock(nn.Module):
    """Self-attention, cross-attention if there is text, and feed-forward layers.

    The first and the last are scaled, shifted and gated by time step and class (adaLN).
    """

    def __init__(self, config: JiTConfig) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        self.norm1 = RMSNorm(width, EPS)
        self.attn = RotaryAttention(width, heads)
        text = config.text_channels
        self.norm_text = RMSNorm(width, EPS) if text else None
        self.attn_text = (
            Attention(width, heads=heads, context_channels=text, bias=True) if text else None
        )
        self.norm2 = RMSNorm(width, EPS)
        self.mlp = SwiGLU(width, int(int(width * config.mlp_ratio) * 2 / 3))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, x: Tensor, cond: Tensor, rotate: RotaryPositions, text: Tensor | None
    ) -> Tensor:
        """Tokens x [B,N,C], time step and class [B,1,C], text [B,T,D] → [B,N,C]."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff = self.adaLN_modulation(cond).chunk(6, -1)
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift, rotate)
        if self.norm_text is not None and self.attn_text is not None:
            x = x + self.attn_text(self.norm_text(x), text)
        return x + gate_ff * self.mlp(self.norm2(x) * (1 + scale_ff) + shift_ff)


class BottleneckEmbedding(nn.Module):
    """Two linear layers over each patch, with few channels between them."""

    def __init__(self, config: JiTConfig) -> None:
        super().__init__()
        side, between = config.patch_size, config.bottleneck_dim
        self.proj1 = nn.Conv2d(config.in_channels, between, side, stride=side, bias=False)
        self.proj2 = nn.Conv2d(between, config.hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] → tokens [B,N,width]."""
        return self.proj2(self.proj1(x)).flatten(2).transpose(1, 2)


class FinalLayer(nn.Module):
    """From tokens to the pixels of their patches."""

    def __init__(self, config: JiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_final = RMSNorm(width, EPS)
        self.linear = nn.Linear(width, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Tokens [B,N,C], time step and class [B,1,C] → [B,N,patch²·out]."""
        shift, scale = self.adaLN_modulation(cond).chunk(2, -1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class JiT(DenoiserNetwork):
    """Pictures, time steps and conditions to a prediction, "sample" in the paper."""

    config: JiTConfig

    def __init__(self, config: JiTConfig) -> None:
        super().__init__()
        self.config = config  # pyright: ignore[reportIncompatibleVariableOverride]
        width, classes = config.hidden_size, config.num_classes
        layers = nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width)
        self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(*layers)})
        self.x_embedder = BottleneckEmbedding(config)
        self.y_embedder = None
        if classes:
            table = nn.Embedding(classes + 1, width)
            self.y_embedder = nn.ModuleDict({"embedding_table": table})
        length = config.in_context_len if classes else 0
        self.in_context_posemb = (
            nn.Parameter(STD * torch.randn(1, length, width)) if length else None
        )
        self.blocks = nn.ModuleList(JiTBlock(config) for _ in range(config.num_layers))
        self.final_layer = FinalLayer(config)

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
        """Pictures [B,C,H,W] at time steps [B] under conditions → [B,C,H,W].

        cond: label, none being no class; text; and extra_channels for input channels beyond the
        pictures'. Raises UndustError for a missing text, a class that does not exist, a size that
        is not whole patches, a perturbation, a control and deep features.
        """
        if any(perturbed) or control:
            raise UndustError("JiT takes neither perturbed attention nor a ControlNet")
        if deep is not None:
            raise UndustError("JiT takes no deep cache: that is for U-Nets")
        config = self.config
        if config.text_channels and cond.text is None:
            raise UndustError("this network needs text for each picture")
        x = cond.network_input(x)
        grid = patch_grid(x, config.patch_size)
        step = (config.patches / grid[0], config.patches / grid[1])
        tokens = self.x_embedder(x)
        tokens = tokens + positions(grid, config.hidden_size, step).to(tokens)
        waves = sinusoids(timestep, WAVES, cos_first=True, freq_shift=0)
        vector, context = self.t_embedder["mlp"](waves.to(x.dtype))[:, None], tokens[:, :0]
        if self.y_embedder is not None and config.num_classes:
            label = labels_or_none(cond, config.num_classes + 1, x.device)
            embedded = self.y_embedder["embedding_table"](label)[:, None]
            vector = vector + embedded
            if self.in_context_posemb is not None:
                context = embedded + self.in_context_posemb
        channels = config.hidden_size // config.num_attention_heads
        rotate = RotaryPositions(grid, channels, step, tokens)
        for index, block in enumerate(self.blocks):
            if index == config.in_context_start:
                tokens = torch.cat([context, tokens], 1)
            tokens = block(tokens, vector, rotate, cond.text)
        tokens = self.final_layer(tokens[:, -len(rotate.cos) :], vector)
        return unpatchify(tokens, grid, config.patch_size)

    def start_at_zero(self) -> None:
        """Initialises it for training as published: modulations and output are zero.

        Blocks start as identities; cross-attention is zero too.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=STD)
        for layer in self.t_embedder.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=STD)
        zero = [self.final_layer.adaLN_modulation, self.final_layer.linear]
        for block in self.blocks:
            own = cast(JiTBlock, block)
            zero += [own.adaLN_modulation, *([own.attn_text.to_out] if own.attn_text else [])]
        for module in zero:
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
