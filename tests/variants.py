"""Tiny models of every variant that reads CLIP's words, as a folder that diffusers reads too."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from undust.conditioning.clip import clip
from undust.conditioning.text import TextConditioner
from undust.conditioning.tokenizer import END, START, Tokenizer
from undust.diffusion.process import VP
from undust.formats.original.variants import VARIANTS, TextEncoderSpec
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import (
    AutoencoderConfig,
    ControlNetConfig,
    TextEncoderConfig,
    UNetConfig,
)
from undust.networks.controlnet import ControlNet
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet
from undust.pipeline import LatentDiffusion

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
FACTOR = 4
WIDTHS = {"CLIP": 32, "OpenCLIP": 64}
SIZES = 32  # channels for each of SDXL's sizes
MERGES = 488


@cache
def short_clip(padding: str = END) -> Tokenizer:
    """CLIP's first merges: 1,002 entries, so that neither table nor vocabulary is large.

    Its ids but for the special tokens are CLIP's; short words are one token, others are several.
    """
    whole = clip(padding)
    merges = whole.merges[:MERGES]
    pieces = [*list(whole.vocabulary)[: 2 * 256 + MERGES], START, END]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return Tokenizer(vocabulary, merges, whole.length, padding)


def build(variant: str, tokenizer: Callable[[str], Tokenizer] = short_clip) -> LatentDiffusion:
    """A whole model with random weights, always the same: latents 4 times smaller than pictures.

    tokenizer: `clip` for tests of what depends on CLIP's own, such as single files.
    """
    known = VARIANTS[variant]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LatentDiffusion(
            Autoencoder(
                AutoencoderConfig(
                    block_out_channels=(16, 32, 32),
                    norm_num_groups=8,
                    scaling_factor=known.scaling_factor,
                    sample_size=64,
                )
            ),
            UNet(_unet(variant)),
            tuple(_text_conditioner(text, tokenizer(text.padding)) for text in known.texts),
            known.process(),
            known.prediction,
            known.force_zeros_for_empty_prompt,
            known.low_res_process(),
            guidance=known.guidance,
            name=variant,
        )
        for network in model.networks.values():
            for parameter in network.parameters():  # fresh biases and norms would hide mistakes
                parameter.data += 0.05 * torch.randn_like(parameter)
            network.eval().requires_grad_(False)
    assert isinstance(model.process, VP)
    return model


def build_control(variant: str) -> ControlNet:
    """A ControlNet for that model: it adds nothing until its weights are others."""
    fields = {
        name: value
        for name, value in _unet(variant).model_dump().items()
        if name in ControlNetConfig.model_fields.keys() - ControlNetConfig.unets
    }
    channels = {"in_channels": 4, "conditioning_embedding_out_channels": (8, 16, 16)}
    return ControlNet(ControlNetConfig.read({**fields, **channels}))


def _unet(variant: str) -> UNetConfig:
    known = VARIANTS[variant]
    width = sum(WIDTHS[text.layout.title] for text in known.texts)
    fields: dict[str, object] = {
        "sample_size": 16,
        "in_channels": known.channels,
        "block_out_channels": (32, 64),
        "down_block_types": (CROSS, PLAIN),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": width,
        "attention_head_dim": (1, 2),
    }
    if variant.startswith("sdxl"):
        told = 5 if variant == "sdxl-refiner" else 6
        fields |= {
            "transformer_layers_per_block": (2, 1),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZES,
            "projection_class_embeddings_input_dim": WIDTHS["OpenCLIP"] + told * SIZES,
        }
    elif variant == "x4-upscaler":
        fields |= {"num_class_embeds": 1000, "use_linear_projection": True}
    return UNetConfig.read(fields)


def _text_conditioner(text: TextEncoderSpec, tokenizer: Tokenizer) -> TextConditioner:
    width = WIDTHS[text.layout.title]
    kind = "CLIPTextModelWithProjection" if text.pooled else "CLIPTextModel"
    config = TextEncoderConfig.read(
        {
            "architectures": [kind],
            "vocab_size": len(tokenizer.vocabulary),
            "hidden_size": width,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "hidden_act": text.activation,
            "projection_dim": width,
            "bos_token_id": tokenizer.vocabulary[START],
            "eos_token_id": tokenizer.vocabulary[END],
        }
    )
    encoder = TextEncoder(config)
    return TextConditioner(tokenizer, encoder, text.penultimate, text.pooled, name=text.folder)
