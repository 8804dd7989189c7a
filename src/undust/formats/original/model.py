"""A whole model from a checkpoint in a single file of the original layout."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import cast

import torch

from undust.conditioning.clip import clip
from undust.conditioning.text import TextConditioner
from undust.errors import UndustError
from undust.formats.components import Components
from undust.formats.folder import summarize_names
from undust.formats.networks import empty_network
from undust.formats.original.checkpoint import Checkpoint, scan_checkpoint
from undust.formats.original.variants import TextEncoderSpec, Variant
from undust.networks.autoencoder import Autoencoder
from undust.networks.base import DenoiserNetwork, FirstStageNetwork
from undust.networks.config import AutoencoderConfig
from undust.networks.text_encoder import TextEncoder


def load_single_file(
    path: Path,
    dtype: torch.dtype | None,
    *,
    ema: bool = False,
    first_stage: bool = True,
) -> Components:
    """The model in a checkpoint of the original layout.

    Options are those of `scan_checkpoint` and of `Checkpoint.load`.

    A first stage that is not needed is replaced by one without weights. Settings that tensors do
    not show are those of the variant. A RuntimeWarning names unknown tensors. Raises UndustError as
    `scan_checkpoint`, and for a file that is not a whole model.
    """
    checkpoint = scan_checkpoint(path, ema=ema, first_stage=first_stage)
    variant = checkpoint.variant
    if variant is None:
        raise UndustError(f"{path} is a first stage alone; a U-Net and a text encoder are missing")
    texts = tuple(
        _text_conditioner(path, text, cast(TextEncoder, checkpoint.parts[text.folder].network))
        for text in variant.texts
    )
    if first_stage and "vae" not in checkpoint.parts:
        raise UndustError(f"{path} has no first stage; give it one with vae")
    for note in summarize_names("unknown and left out", checkpoint.unknown):
        warnings.warn(f"{path}: {note}", RuntimeWarning, stacklevel=2)
    networks = checkpoint.load(dtype)
    return Components(
        cast(FirstStageNetwork, networks.get("vae") or _placeholder(checkpoint, variant).to(dtype)),
        cast(DenoiserNetwork, networks["unet"]),
        texts,
        variant.process(),
        variant.prediction,
        variant.force_zeros_for_empty_prompt,
        variant.low_res_process(),
        guidance=variant.guidance,
    )


def _placeholder(checkpoint: Checkpoint, variant: Variant) -> Autoencoder:
    """A first stage without weights, with the latents that a replacement has to have."""
    unet = cast(DenoiserNetwork, checkpoint.parts["unet"].network)
    config = {
        "block_out_channels": (32,) * checkpoint.downsampling_factor.bit_length(),
        "latent_channels": unet.config.out_channels,
        "scaling_factor": variant.scaling_factor,
    }
    return empty_network(Autoencoder, AutoencoderConfig.read(config))


def _text_conditioner(path: Path, text: TextEncoderSpec, encoder: TextEncoder) -> TextConditioner:
    tokenizer = clip(text.padding)
    known = encoder.config.vocab_size, encoder.config.max_position_embeddings
    if known != (len(tokenizer.vocabulary), tokenizer.length):
        raise UndustError(
            f"{path} has a text encoder for {known[0]} tokens and {known[1]} positions; "
            f"CLIP's has {len(tokenizer.vocabulary)} and {tokenizer.length}"
        )
    return TextConditioner(tokenizer, encoder, text.penultimate, text.pooled, name=text.folder)
