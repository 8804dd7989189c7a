"""A tiny model of every variant, with random weights, and files of it in the original layout."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from undust.formats import safetensors_file
from undust.formats.original.checkpoint import to_original
from undust.formats.original.variants import VARIANTS
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import (
    AutoencoderConfig,
    NetworkConfig,
    TextEncoderConfig,
    UNetConfig,
)
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet

PUBLISHED = Path(__file__).parent / "published"
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
WIDTHS = {"F16": 2, "I64": 8}  # bytes
FACTOR = 4  # of the tiny first stage
SIZES = 256  # channels for each of SDXL's sizes


@dataclass(frozen=True)
class Tiny:
    """A model's parts: the configuration of each and its tensors, under our names."""

    variant: str
    parts: dict[str, tuple[NetworkConfig, dict[str, Tensor]]] = field(default_factory=dict)

    def original(self) -> dict[str, Tensor]:
        return to_original(VARIANTS[self.variant], self.parts)


def unet_config(variant: str) -> UNetConfig:
    kind = variant.removesuffix("-inpainting")
    fields = {
        "sd1": {
            "block_out_channels": (32, 64, 64),
            "down_block_types": (CROSS, CROSS, PLAIN),
            "layers_per_block": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 32,
        },
        "sd2": {
            "block_out_channels": (64, 128),
            "down_block_types": (CROSS, PLAIN),
            "attention_head_dim": (1, 2),
            "cross_attention_dim": 64,
            "use_linear_projection": True,
        },
        "sdxl": {
            "block_out_channels": (64, 128),
            "down_block_types": (PLAIN, CROSS),
            "attention_head_dim": (1, 2),
            "transformer_layers_per_block": (1, 2),
            "cross_attention_dim": 32 + 64,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZES,
            "projection_class_embeddings_input_dim": 64 + 6 * SIZES,
        },
        "sdxl-refiner": {
            "block_out_channels": (64, 128, 128),
            "down_block_types": (PLAIN, CROSS, PLAIN),
            "attention_head_dim": (1, 2, 2),
            "transformer_layers_per_block": (1, 2, 2),
            "cross_attention_dim": 64,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZES,
            "projection_class_embeddings_input_dim": 64 + 5 * SIZES,
        },
        "x4-upscaler": {
            "block_out_channels": (32, 64, 64),
            "down_block_types": (PLAIN, CROSS, CROSS),
            "attention_head_dim": 8,
            "cross_attention_dim": 96,
            "use_linear_projection": True,
            "only_cross_attention": (False, True, False),
            "num_class_embeds": 10,
        },
    }
    fields["sd2-v"] = fields["sd2"]
    own = {"layers_per_block": 1, **fields[kind]}
    up = [kind.replace("Down", "Up") for kind in own["down_block_types"][::-1]]
    return UNetConfig(
        **own,
        up_block_types=up,
        in_channels=VARIANTS[variant].channels,
        sample_size=VARIANTS[variant].size // FACTOR,
    )


def text_config(kind: str, width: int, *, projects: bool) -> TextEncoderConfig:
    return TextEncoderConfig(
        architectures=["CLIPTextModelWithProjection" if projects else "CLIPTextModel"],
        vocab_size=99,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=7,
        hidden_act={"CLIP": "quick_gelu", "OpenCLIP": "gelu"}[kind],
        projection_dim=width,
    )


def vae_config(variant: str) -> AutoencoderConfig:
    known = VARIANTS[variant]
    return AutoencoderConfig(
        block_out_channels=(32, 64, 32),
        layers_per_block=2,
        scaling_factor=known.scaling_factor,
        sample_size=known.size,
    )


def weights(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: torch.randn_like(tensor) for name, tensor in network.state_dict().items()}


def build(variant: str) -> Tiny:
    unet, vae = unet_config(variant), vae_config(variant)
    parts: dict[str, tuple[NetworkConfig, dict[str, Tensor]]] = {
        "unet": (unet, weights(UNet(unet))),
        "vae": (vae, weights(Autoencoder(vae))),
    }
    for text in VARIANTS[variant].texts:
        width = {"CLIP": 32, "OpenCLIP": 96 if variant == "x4-upscaler" else 64}[text.layout.title]
        config = text_config(text.layout.title, width, projects=text.pooled)
        parts[text.folder] = (config, weights(TextEncoder(config)))
    # The one number that says which of the two kinds of Stable Diffusion 2 it is.
    for key, tensor in parts["unet"][1].items():
        if key.endswith("transformer_blocks.0.norm1.bias"):
            tensor *= 1.0 if variant == "sd2-v" else 0.01
    return Tiny(variant, parts)


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Tiny]:
    """The tiny model of a variant, always the same."""
    built: dict[str, Tiny] = {}

    def of(variant: str) -> Tiny:
        if variant not in built:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                built[variant] = build(variant)
        return built[variant]

    return of


@pytest.fixture(scope="session")
def published() -> Callable[[str], dict[str, tuple[int, ...]]]:
    """Names and shapes of the tensors in a published checkpoint; the files say where from."""

    def of(variant: str) -> dict[str, tuple[int, ...]]:
        with gzip.open(PUBLISHED / f"{variant}.txt.gz", "rt", encoding="utf-8") as file:
            rows = [line.split() for line in file if not line.startswith("#")]
        return {
            key: () if lengths == "-" else tuple(map(int, lengths.split("x")))
            for key, lengths in rows
        }

    return of


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes tensors to a file."""

    def write(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
        path = tmp_path / "model.safetensors"
        safetensors_file.save(path, tensors, metadata)
        return path

    return write


@pytest.fixture
def hollow(tmp_path: Path) -> Callable[..., Path]:
    """Writes tensors of given shapes, all zeros: what nobody wrote takes no room on the disk."""

    def write(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16") -> Path:
        path = tmp_path / "hollow.safetensors"
        head: dict[str, object] = {}
        end = 0
        for key, shape in shapes.items():
            start, end = end, end + WIDTHS[dtype] * math.prod(shape)
            head[key] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(head).encode()
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        return path

    return write
