"""Small valid networks and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fuzzing.changes import Entries
from undust.conditioning import tokenizer as tokenizers
from undust.conditioning.text import TextConditioner
from undust.diffusion.process import PROCESSES
from undust.formats import model_folder
from undust.formats.components import Components
from undust.formats.networks import empty_network
from undust.formats.original.checkpoint import to_original
from undust.formats.original.variants import VARIANTS
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import (
    AutoencoderConfig,
    TextEncoderConfig,
    UNetConfig,
)
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet


def text_encoder(vocabulary: int, length: int, width: int = 32) -> TextEncoderConfig:
    return TextEncoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=length,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        projection_dim=width,
    )


def unet(width: int = 32, text: int = 32, **fields: Any) -> UNetConfig:
    return UNetConfig.read(
        {
            "sample_size": 8,
            "block_out_channels": (width, width),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": text,
            "attention_head_dim": 1,
            **fields,
        }
    )


VAE = AutoencoderConfig(block_out_channels=(32,))


def entries_of(network: nn.Module, prefix: str = "", dtype: str = "F16") -> Entries:
    found = network.state_dict()
    return {prefix + name: (dtype, tuple(tensor.shape)) for name, tensor in found.items()}


def checkpoint(variant: str, vocabulary: int = 99, length: int = 7) -> Entries:
    """The tensors of a whole model in one file, of no weight."""
    known = VARIANTS[variant]
    wide = {"CLIP": 32, "OpenCLIP": 64}
    text = sum(wide[each.layout.title] for each in known.texts)
    more: dict[str, Any] = {"in_channels": known.channels}
    if known.added:
        more |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 64 + 6 * 256,
        }
    config = unet(64, text, **more)
    parts: dict[str, Any] = {
        "unet": (config, empty_network(UNet, config).state_dict()),
        "vae": (VAE, empty_network(Autoencoder, VAE).state_dict()),
    }
    for each in known.texts:
        told = text_encoder(vocabulary, length, wide[each.layout.title]).model_dump()
        projects = ["CLIPTextModelWithProjection" if each.pooled else "CLIPTextModel"]
        words = TextEncoderConfig.read({**told, "architectures": projects})
        parts[each.folder] = (words, empty_network(TextEncoder, words).state_dict())
    tensors = to_original(known, parts)
    return {name: ("F16", tuple(tensor.shape)) for name, tensor in tensors.items()}


def drawn(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def model(room: Path) -> Path:
    """A whole model's folder."""
    folder = room / "model"
    tokens = tokenizers.train(["a cat", "a dog"], size=520, length=16)
    config = text_encoder(len(tokens.vocabulary), 16)
    words = TextConditioner(tokens, TextEncoder(config))
    process = PROCESSES["scaled-linear"]()
    model_folder.write(
        Components(Autoencoder(VAE), UNet(unet()), (words,), process, "epsilon"), folder
    )
    return folder
