"""The parts of a model that one can paint with, from a checkpoint in one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from undust.conditioning.clip import clip
from undust.conditioning.tokenizer import Tokenizer
from undust.errors import UndustError
from undust.formats.original.checkpoint import survey
from undust.formats.original.variants import Variant
from undust.networks.autoencoder import Autoencoder
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet


@dataclass(frozen=True)
class Model:
    """What a checkpoint says, and what it leaves to its variant."""

    variant: Variant
    autoencoder: Autoencoder
    unet: UNet
    text_encoder: TextEncoder
    tokenizer: Tokenizer


def load(path: Path, dtype: torch.dtype, *, ema: bool = False) -> Model:
    """The model in a checkpoint of the original layout; `ema` as `survey`.

    Raises UndustError as `survey`, and for a variant that there is no way to paint with yet.
    """
    checkpoint = survey(path, ema=ema)
    variant = checkpoint.variant
    if variant is None:
        raise UndustError(f"{path} is a first stage alone; a U-Net and a text encoder are missing")
    if not _simple(variant):
        raise UndustError(
            f"{path} is a {variant.title}; undust inspect knows it, but painting with it is not "
            "built yet"
        )
    tokenizer = clip(variant.texts[0].padding)
    text_encoder = cast(TextEncoder, checkpoint.parts["text_encoder"].network)
    known = text_encoder.config.vocab_size, text_encoder.config.max_position_embeddings
    if known != (len(tokenizer.vocabulary), tokenizer.length):
        raise UndustError(
            f"{path} has a text encoder of {known[0]} words and {known[1]} places; "
            f"CLIP's has {len(tokenizer.vocabulary)} and {tokenizer.length}"
        )
    networks = checkpoint.load(dtype)
    return Model(
        variant,
        cast(Autoencoder, networks["vae"]),
        cast(UNet, networks["unet"]),
        text_encoder,
        tokenizer,
    )


def _simple(variant: Variant) -> bool:
    """Whether noise and the last states of one text encoder are all that the U-Net is shown."""
    shown = [(text.penultimate, text.pooled) for text in variant.texts]
    return variant.channels == 4 and not variant.added and shown == [(False, False)]
