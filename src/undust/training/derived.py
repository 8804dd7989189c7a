"""The keys of a diffusion recipe that follow from its other keys and the first stage."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from undust.errors import UndustError
from undust.formats import locate, standalone_vae
from undust.networks.config import TextEncoderConfig, UNetConfig


def derived_unet(given: UNetConfig, first_stage: Path, size: int, text_width: int) -> UNetConfig:
    """The U-Net's configuration with the sizes that are left out.

    first_stage: its place, as `first_stage_at` finds it; size: of the images, pixels; text_width:
    of the text encoder. Raises UndustError for sizes that contradict each other, with both.
    """
    try:
        network = standalone_vae.empty(first_stage)
    except UndustError as error:
        raise UndustError(f"first_stage: {error}") from error
    channels, factor = network.latent_channels, network.downsampling_factor
    if size % factor:
        fits = max(1, round(size / factor)) * factor
        raise UndustError(
            f"data.size is {size}, which is not divisible by {factor}, the factor of the first "
            f"stage {first_stage}; {fits} would be"
        )
    derived = {
        "sample_size": (
            size // factor,
            f"data.size is {size} and the first stage's factor {factor}",
        ),
        "in_channels": (channels, f"the first stage's latents have {channels} channels"),
        "out_channels": (channels, f"the first stage's latents have {channels} channels"),
        "cross_attention_dim": (text_width, f"text_encoder.hidden_size is {text_width}"),
    }
    fields = given.model_dump(exclude_unset=True, exclude_none=True)
    for key, (value, reason) in derived.items():
        own = fields.get(key, value)
        if own != value and (not isinstance(own, tuple) or {*cast("tuple[int]", own)} != {value}):
            raise UndustError(
                f"unet.{key} is {own}, but {reason}: it has to be {value}, or to be left out"
            )
    return UNetConfig.read({**{key: value for key, (value, _) in derived.items()}, **fields})


def check_text_encoder(given: TextEncoderConfig, vocabulary: int, length: int) -> None:
    """Raises UndustError for keys that differ from those of the tokenizer that is learnt.

    vocabulary, length: of the recipe's captions.
    """
    for key, own in (
        ("vocab_size", ("captions.vocabulary", vocabulary)),
        ("max_position_embeddings", ("captions.length", length)),
        *((f"{token}_token_id", None) for token in ("bos", "eos", "pad")),
    ):
        default = type(given).model_fields[key].default
        value = getattr(given, key)
        if value == default or (own and value == own[1]):
            continue
        reason = f"{own[0]} is {own[1]}" if own else "the tokenizer is learnt"
        raise UndustError(f"text_encoder.{key} is {value}, but {reason}: it has to be left out")


def first_stage_at(given: Path) -> Path:
    """The folder or file of the autoencoder that `first_stage` of a recipe names.

    given: that folder or file, the folder of a run that trained one, a model's folder or file, or
    the name of a model. Raises UndustError if there is none.
    """
    if not given.exists() and len(given.parts) > 1 and Path(given.parts[0]).is_dir():
        raise UndustError(f"first_stage: {given} does not exist")
    try:
        found = locate.find(given)
    except UndustError as error:
        raise UndustError(f"first_stage: {error}") from error
    if found.is_file():
        return found
    for place in (found, found / "model"):
        if (standalone_vae.locate(place) / "config.json").is_file():
            return standalone_vae.locate(place)
    raise UndustError(
        f"first_stage: {found} has no autoencoder; expected the folder of one, of a run that "
        "trained one, or of a model"
    )
