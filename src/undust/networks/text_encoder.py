"""A causal text transformer, as CLIP's (Radford et al. 2021)."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from undust.errors import UndustError
from undust.networks.attention import attend
from undust.networks.config import TextEncoderConfig


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

    def forward(self, ids: Tensor) -> Tensor:
        """[B,T] → [B,T,D]; UndustError if there are more tokens than positions."""
        positions = self.position_embedding.weight
        if ids.shape[1] > len(positions):
            raise UndustError(
                f"{ids.shape[1]} tokens are too many: this text encoder takes {len(positions)}"
            )
        return self.token_embedding(ids) + positions[: ids.shape[1]]


class CausalAttention(nn.Module):
    """Every token looks at itself and those before it."""

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
    """Attention and a feed-forward part, each normalised first and beside a skip."""

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
    """Token ids to the states of every token; keys as in published `CLIPTextModel` files."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        layers = nn.Sequential(*(Layer(config) for _ in range(config.num_hidden_layers)))
        self.text_model = _named(
            embeddings=Embeddings(config),
            encoder=_named(layers=layers),
            final_layer_norm=nn.LayerNorm(config.hidden_size, config.layer_norm_eps),
        )
        self.apply(self._initialise)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [B,T] → states after the final norm [B,T,D]; UndustError if too long."""
        return self.text_model(ids)

    def _initialise(self, module: nn.Module) -> None:
        """CLIP's own starting weights: what is added to the residual stream shrinks with depth."""
        config = self.config
        width = 1 / math.sqrt(config.hidden_size)
        branch = width / math.sqrt(2 * config.num_hidden_layers)
        deviations: dict[str, float] = {
            "token_embedding": config.initializer_range,
            "position_embedding": config.initializer_range,
            **dict.fromkeys(("q_proj", "k_proj", "v_proj", "fc2"), branch),
            "out_proj": width,
            "fc1": width / math.sqrt(2),
        }
        for name, child in module.named_children():
            if name in deviations and isinstance(child, nn.Embedding | nn.Linear):
                nn.init.normal_(child.weight, std=config.initializer_factor * deviations[name])
                if isinstance(child, nn.Linear):
                    nn.init.zeros_(child.bias)


def _named(**parts: nn.Module) -> nn.Sequential:
    """Parts run one after another, under the given names."""
    return nn.Sequential(OrderedDict(parts))
