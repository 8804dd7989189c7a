"""CLIP's text encoder, a causal transformer (Radford et al. 2021)."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from undust.errors import UndustError
from undust.networks.attention import attend
from undust.networks.config import TextEncoderConfig

LEGACY_END = 2  # the end token in older configurations, where it is really the largest id


class EncodedText(NamedTuple):
    """Encoded tokens: `states` [B,T,D], and `pooled` [B,P], None without a projection."""

    states: Tensor
    pooled: Tensor | None


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return x * torch.sigmoid(1.702 * x)


class Embeddings(nn.Module):
    """The sum of token and position embeddings."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """[B,T] → [B,T,D]; UndustError if there are more tokens than positions.

        rows: the embeddings [N,D] of further tokens, whose ids start at the vocabulary's size.
        """
        positions = self.position_embedding.weight
        if ids.shape[1] > len(positions):
            raise UndustError(
                f"{ids.shape[1]} tokens are too many: this text encoder takes {len(positions)}"
            )
        return self._tokens(ids, rows) + positions[: ids.shape[1]]

    def _tokens(self, ids: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:
            return self.token_embedding(ids)
        # The table is not extended: copying it could cost a hundred thousand times as much.
        size = len(self.token_embedding.weight)
        known = self.token_embedding(ids.clamp(max=size - 1))
        further = ids >= size
        return known.index_put((further,), rows.to(known)[ids[further] - size])


class CausalAttention(nn.Module):
    """Self-attention of every token to itself and to the tokens before it."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,D] → [B,T,D]."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.out_proj(attend(q, k, v, heads=self.heads, causal=True))


class Layer(nn.Module):
    """Attention and feed-forward, pre-normalised, with skip connections."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer_norm1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.self_attn = CausalAttention(width, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(width, config.layer_norm_eps)
        self.mlp = _named(
            fc1=nn.Linear(width, config.intermediate_size),
            act=QuickGELU() if config.hidden_act == "quick_gelu" else nn.GELU(),
            fc2=nn.Linear(config.intermediate_size, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,D] → [B,T,D]."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextEncoder(nn.Module):
    """Token ids to the states of every token; keys as in published `CLIPTextModel` files.

    A `CLIPTextModelWithProjection` also has a `text_projection`.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        layers = nn.Sequential(*(Layer(config) for _ in range(config.num_hidden_layers)))
        self.text_model = _named(
            embeddings=Embeddings(config),
            encoder=_named(layers=layers),
            final_layer_norm=nn.LayerNorm(config.hidden_size, config.layer_norm_eps),
        )
        self.text_projection = (
            nn.Linear(config.hidden_size, config.projection_dim, bias=False)
            if config.projects and config.projection_dim
            else None
        )
        self.apply(self._initialise)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [B,T] → states after the final norm [B,T,D]; UndustError if T is too large."""
        return self.text_model(ids)

    def read(
        self, ids: Tensor, *, skip: int = 0, norm: bool = True, rows: Tensor | None = None
    ) -> EncodedText:
        """Token ids [B,T] → the states after all layers but the last `skip`, and the pooled state.

        norm: whether the final norm is applied to the states, as in Stable Diffusion 1 and 2 but
        not in XL; rows: embeddings [N,D] of the ids from `vocab_size` on. The pooled state is the
        projection of the end token's state after all layers and the norm; None without a
        `text_projection`. Raises UndustError for a skip of more layers than there are, and as
        `forward`.
        """
        embeddings, encoder, final_norm = self.text_model
        layers = cast(nn.Sequential, cast(nn.Sequential, encoder)[0])
        if not 0 <= skip <= len(layers):
            raise UndustError(
                f"clip skip: {skip} is not 0 to {len(layers)}, the layers of this text encoder"
            )
        kept = len(layers) - skip
        x = layers[:kept](embeddings(ids, rows))
        states = final_norm(x) if norm else x
        if self.text_projection is None:
            return EncodedText(states, None)
        last = final_norm(layers[kept:](x))
        batch = torch.arange(len(ids), device=ids.device)
        return EncodedText(states, self.text_projection(last[batch, self._end(ids)]))

    def _end(self, ids: Tensor) -> Tensor:
        """The position of the first end token of each row [B]."""
        known = ids.where(ids < self.config.vocab_size, 0)
        end = cast(int, self.config.eos_token_id)  # where there is a projection it is one
        return (known if end == LEGACY_END else (known == end).int()).argmax(1)

    def _initialise(self, module: nn.Module) -> None:
        """CLIP's initialisation: residual branches are scaled down with the number of layers."""
        config = self.config
        width = 1 / math.sqrt(config.hidden_size)
        branch = width / math.sqrt(2 * config.num_hidden_layers)
        deviations: dict[str, float] = {
            "token_embedding": config.initializer_range,
            "position_embedding": config.initializer_range,
            **dict.fromkeys(("q_proj", "k_proj", "v_proj", "fc2"), branch),
            **dict.fromkeys(("out_proj", "text_projection"), width),
            "fc1": width / math.sqrt(2),
        }
        for name, child in module.named_children():
            if name in deviations and isinstance(child, nn.Embedding | nn.Linear):
                nn.init.normal_(child.weight, std=config.initializer_factor * deviations[name])
                for bias in (own for kind, own in child.named_parameters() if kind == "bias"):
                    nn.init.zeros_(bias)


def _named(**parts: nn.Module) -> nn.Sequential:
    """A sequence of modules under the given names."""
    return nn.Sequential(OrderedDict(parts))
