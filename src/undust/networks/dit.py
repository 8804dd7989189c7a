"""Diffusion transformers over patches of the latents, with classes or text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undust.errors import UndustError
from undust.networks.attention import (
    ApproximateGELU,
    Attention,
    FeedForward,
    Perturbation,
    Rows,
    replaced,
)
from undust.networks.base import DenoiserNetwork
from undust.networks.conditioning import Conditioning
from undust.networks.config import DiTConfig, PixArtConfig
from undust.networks.deep_cache import DeepFeatures
from undust.networks.layers import TimestepEmbedding, sinusoids

WAVES = 256  # channels of the time step's sinusoids
EPS = 1e-6


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float = EPS) -> Tensor:
    """Tokens x [B,N,C], normalised, scaled and shifted by [B,1,C] (Peebles & Xie 2023, adaLN)."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Tokens [B,N,patch²·C] of a grid (h, w) → pictures [B,C,h·patch,w·patch]; channels last."""
    pixels = tokens.reshape(len(tokens), *grid, patch, patch, -1)
    return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def positions(grid: tuple[int, int], channels: int, step: tuple[float, float]) -> Tensor:
    """Sinusoids of the places of a grid (h, w), its columns before its rows → [h·w,channels].

    step: between rows and between columns (Vaswani et al. 2017 in two dimensions).
    """
    rows, columns = (
        sinusoids(torch.arange(n) * size, channels // 2, cos_first=False, freq_shift=0)
        for n, size in zip(grid, step, strict=True)
    )
    shape = (*grid, -1)
    return torch.cat([columns[None].expand(shape), rows[:, None].expand(shape)], -1).flatten(0, 1)


def patch_grid(x: Tensor, patch: int) -> tuple[int, int]:
    """The rows and columns of patches of x [B,C,H,W]; UndustError for a size that has others."""
    height, width = x.shape[2:]
    if height % patch or width % patch:
        raise UndustError(
            f"this network takes sides that are divisible by {patch}, its patch, not "
            f"{width}×{height}"
        )
    return height // patch, width // patch


def labels_or_none(cond: Conditioning, classes: int, device: torch.device) -> Tensor:
    """The class of each picture, [B]: without labels the last of them, which is for no class."""
    if cond.label is not None:
        return cond.labels(classes)
    return torch.full((len(cond),), classes - 1, device=device)


class PatchEmbedding(nn.Module):
    """A linear layer over each patch, and the sinusoids of its place."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.proj = nn.Conv2d(config.in_channels, config.width, side, stride=side)

    def forward(self, x: Tensor, step: tuple[float, float]) -> Tensor:
        """[B,C,H,W] → [B,width,h,w]; step: between rows and between columns."""
        h = self.proj(x)
        grid = (h.shape[2], h.shape[3])
        return h + positions(grid, h.shape[1], step).to(h).T.reshape(1, -1, *grid)


class AdaptiveBlock(nn.Module):
    """Self-attention, cross-attention if there is text, and feed-forward layers.

    The first and the last are scaled, shifted and gated by a modulation of the whole picture. eps:
    of the first normalisation.
    """

    def __init__(self, config: DiTConfig, *, eps: float, context_channels: int = 0) -> None:
        super().__init__()
        width, heads, bias = config.width, config.num_attention_heads, config.attention_bias
        self.eps, self.eps_ff = eps, config.norm_eps
        self.attn1 = Attention(width, heads=heads, bias=bias)
        self.attn2 = (
            Attention(width, heads=heads, context_channels=context_channels, bias=bias)
            if context_channels
            else None
        )
        self.ff = FeedForward(width, ApproximateGELU)

    def forward(
        self, x: Tensor, modulation: Tensor, context: Tensor | None, instead: Sequence[Rows] = ()
    ) -> Tensor:
        """Tokens x [B,N,C], modulation [B,6,C], context [B,M,D] → [B,N,C].

        instead: of self-attention, by rows.
        """
        shift, scale, gate, shift_ff, scale_ff, gate_ff = modulation.split(1, dim=1)
        x = x + gate * self.attn1(modulate(x, shift, scale, self.eps), None, instead)
        if self.attn2 is not None:
            x = x + self.attn2(x, context)
        return x + gate_ff * self.ff(modulate(x, shift_ff, scale_ff, self.eps_ff))


class TimeAndClass(nn.Module):
    """The sum of an embedding of the time step and one of the class."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        classes = config.num_embeds_ada_norm + config.null_class
        self.timestep_embedder = TimestepEmbedding(WAVES, config.width)
        self.class_embedder = nn.ModuleDict(
            {"embedding_table": nn.Embedding(classes, config.width)}
        )

    def forward(self, waves: Tensor, label: Tensor) -> Tensor:
        """Sinusoids [B,256] and classes [B] → [B,C]."""
        return self.timestep_embedder(waves) + self.class_embedder["embedding_table"](label)


class AdaLNZero(nn.Module):
    """The modulation of a block from the time step and the class."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.emb = TimeAndClass(config)
        self.linear = nn.Linear(config.width, 6 * config.width)

    def forward(self, waves: Tensor, label: Tensor) -> Tensor:
        """Sinusoids [B,256] and classes [B] → [B,6,C]."""
        return self.linear(F.silu(self.emb(waves, label))).unflatten(1, (6, -1))


class DiTBlock(AdaptiveBlock):
    """A block with embeddings of time step and class of its own, as the published keys have it."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config, eps=EPS)
        self.norm1 = AdaLNZero(config)


class AnyDiT(DenoiserNetwork):
    """Blocks over the tokens of all patches, between a linear layer in and one out."""

    config: DiTConfig
    transformer_blocks: nn.ModuleList
    freq_shift: float

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self.pos_embed = PatchEmbedding(config)

    @abstractmethod
    def modulations(self, waves: Tensor, cond: Conditioning) -> Iterator[Tensor]:
        """Sinusoids [B,256] and conditions → [B,6,C] for each block and [B,2,C] for the end."""

    @abstractmethod
    def context(self, cond: Conditioning) -> Tensor | None:
        """The text tokens of cross-attention [B,T,D]."""

    @property
    @abstractmethod
    def last(self) -> nn.Linear:
        """The last layer."""

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
        """Latents [B,C,H,W] at time steps [B] under conditions → [B,C,H,W].

        cond: label or text, and extra_channels for input channels beyond the latents'; perturbed:
        for each picture, the replacement of self-attention in the middle block, or None. A learnt
        variance is left out. Raises UndustError for a missing text, a class that does not exist, a
        size that is not whole patches, a control and deep features.
        """
        if control or deep is not None:
            what = "ControlNet" if control else "deep cache: that is for U-Nets"
            raise UndustError(f"a diffusion transformer takes no {what}")
        x = cond.network_input(x)
        grid = patch_grid(x, self.config.patch_size)
        rows, columns = grid
        size = self.config.patches / self.config.position_scale
        h = self.pos_embed(x, (size / rows, size / columns))
        instead = [*replaced(perturbed, h)]
        tokens, context = h.flatten(2).transpose(1, 2), self.context(cond)
        waves = sinusoids(timestep, WAVES, cos_first=True, freq_shift=self.freq_shift)
        *modulations, last = self.modulations(waves.to(x.dtype), cond)
        middle = len(modulations) // 2
        for index, block in enumerate(self.transformer_blocks):
            changed = instead if index == middle else ()
            tokens = block(tokens, modulations[index], context, changed)
        shift, scale = last.split(1, dim=1)
        tokens = self.last(modulate(tokens, shift, scale))
        output = unpatchify(tokens, grid, self.config.patch_size)
        return output[:, : self.config.latent_channels]

    def start_at_zero(self) -> None:
        """Initialises it for training so that its output is zero.

        As published for DiT (Peebles & Xie 2023, section 3.2, and their code): blocks start as
        identities where their gates are zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, TimestepEmbedding):
                for layer in (module.linear_1, module.linear_2):
                    nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.last.weight)


class DiT(AnyDiT):
    """With classes, no class being the last (Peebles & Xie 2023); keys as DiTTransformer2DModel's.

    Pictures without a label have no class, so a network without labels is trained with it alone.
    """

    freq_shift = 1.0

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.transformer_blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.num_layers))
        self.proj_out_1 = nn.Linear(config.width, 2 * config.width)
        self.proj_out_2 = nn.Linear(config.width, config.patch_size**2 * config.out_channels)

    @property
    def last(self) -> nn.Linear:
        """The last layer."""
        return self.proj_out_2

    def context(self, cond: Conditioning) -> None:
        """None."""

    def modulations(self, waves: Tensor, cond: Conditioning) -> Iterator[Tensor]:
        """From the time step and the class."""
        label = labels_or_none(cond, self.config.num_embeds_ada_norm + 1, waves.device)
        adaptive = [cast(DiTBlock, block).norm1 for block in self.transformer_blocks]
        yield from (each(waves, label) for each in adaptive)
        yield self.proj_out_1(F.silu(adaptive[0].emb(waves, label))).unflatten(1, (2, -1))

    def start_at_zero(self) -> None:
        """As `AnyDiT`; all modulations are zero too."""
        super().start_at_zero()
        adaptive = [cast(DiTBlock, block).norm1.linear for block in self.transformer_blocks]
        for layer in (*adaptive, self.proj_out_1):
            nn.init.zeros_(layer.weight)


class PixArtBlock(AdaptiveBlock):
    """A block that adds a table of its own to the modulation that all share."""

    def __init__(self, config: PixArtConfig) -> None:
        super().__init__(config, eps=config.norm_eps, context_channels=config.cross_attention_dim)
        self.scale_shift_table = _table(6, config.width)


class CaptionProjection(nn.Module):
    """Two linear layers from text tokens to the width of the network."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, text: Tensor) -> Tensor:
        """[B,T,D] → [B,T,C]."""
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))


class AdaLNSingle(nn.Module):
    """The modulation of all blocks from the time step alone (Chen et al. 2023, section 2.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.emb = nn.ModuleDict({"timestep_embedder": TimestepEmbedding(WAVES, channels)})
        self.linear = nn.Linear(channels, 6 * channels)

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """Sinusoids [B,256] → the modulation [B,6,C] and the embedding of the time step [B,1,C]."""
        embedded = self.emb["timestep_embedder"](waves)
        return self.linear(F.silu(embedded)).unflatten(1, (6, -1)), embedded[:, None]


class PixArt(AnyDiT):
    """With text by cross-attention (Chen et al. 2023); keys as PixArtTransformer2DModel's."""

    config: PixArtConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    freq_shift = 0.0

    def __init__(self, config: PixArtConfig) -> None:
        super().__init__(config)
        width, captions = config.width, config.caption_channels
        self.transformer_blocks = nn.ModuleList(
            PixArtBlock(config) for _ in range(config.num_layers)
        )
        self.adaln_single = AdaLNSingle(width)
        self.caption_projection = CaptionProjection(captions, width) if captions else None
        self.scale_shift_table = _table(2, width)
        self.proj_out = nn.Linear(width, config.patch_size**2 * config.out_channels)

    @property
    def last(self) -> nn.Linear:
        """The last layer."""
        return self.proj_out

    def context(self, cond: Conditioning) -> Tensor:
        """The text's tokens, projected. Raises UndustError without text."""
        if cond.text is None:
            raise UndustError("this network needs text for each picture")
        return cond.text if self.caption_projection is None else self.caption_projection(cond.text)

    def modulations(self, waves: Tensor, cond: Conditioning) -> Iterator[Tensor]:  # noqa: ARG002
        """From the time step, and a table of each block."""
        shared, time = self.adaln_single(waves)
        for block in self.transformer_blocks:
            yield cast(PixArtBlock, block).scale_shift_table + shared
        yield self.scale_shift_table + time

    def start_at_zero(self) -> None:
        """As `AnyDiT`; cross-attention is zero too, the tables are random (their code)."""
        super().start_at_zero()
        normal = [self.adaln_single.linear]
        if self.caption_projection is not None:
            normal += [self.caption_projection.linear_1, self.caption_projection.linear_2]
        for layer in normal:
            nn.init.normal_(layer.weight, std=0.02)
        for block in self.transformer_blocks:
            for parameter in cast(Attention, cast(PixArtBlock, block).attn2).to_out.parameters():
                nn.init.zeros_(parameter)


def _table(rows: int, channels: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, channels) / channels**0.5)
