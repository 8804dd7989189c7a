"""The keys of a diffusion recipe that its other keys and the first stage decide."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from undust.errors import UndustError
from undust.formats import locate, standalone_vae
from undust.networks.config import UNetConfig
from undust.training.configs import DiffusionConfig


def with_derived(recipe: DiffusionConfig) -> DiffusionConfig:
    """The recipe with its first stage's place, and the U-Net's sizes where they are left out.

    Raises UndustError for a first stage that is not found, and, with both numbers, for sizes that
    contradict each other.
    """
    place = first_stage_at(recipe.first_stage)
    try:
        first_stage = standalone_vae.empty(place)
    except UndustError as error:
        raise UndustError(f"first_stage: {error}") from error
    channels, size = first_stage.latent_channels, recipe.data.size
    factor = first_stage.downsampling_factor
    if size % factor:
        fits = max(1, round(size / factor)) * factor
        raise UndustError(
            f"data.size is {size}, which is not divisible by {factor}, the factor of the first "
            f"stage {place}; {fits} would be"
        )
    width = recipe.text_encoder.hidden_size
    derived = {
        "sample_size": (
            size // factor,
            f"data.size is {size} and the first stage's factor {factor}",
        ),
        "in_channels": (channels, f"the first stage's latents have {channels} channels"),
        "out_channels": (channels, f"the first stage's latents have {channels} channels"),
        "cross_attention_dim": (width, f"text_encoder.hidden_size is {width}"),
    }
    _check_text_encoder(recipe)
    given = recipe.unet.model_dump(exclude_unset=True, exclude_none=True)
    for key, (value, reason) in derived.items():
        own = given.get(key, value)
        if own != value and (not isinstance(own, tuple) or {*cast("tuple[int]", own)} != {value}):
            raise UndustError(
                f"unet.{key} is {own}, but {reason}: it has to be {value}, or to be left out"
            )
    unet = UNetConfig.read({**{key: value for key, (value, _) in derived.items()}, **given})
    return recipe.model_copy(update={"first_stage": place, "unet": unet})


def _check_text_encoder(recipe: DiffusionConfig) -> None:
    """Raises UndustError for a key of the text encoder at another value than it is trained with."""
    captions, given = recipe.captions, recipe.text_encoder
    for key, own in (
        ("vocab_size", ("captions.vocabulary", captions.vocabulary)),
        ("max_position_embeddings", ("captions.length", captions.length)),
        *((f"{token}_token_id", None) for token in ("bos", "eos", "pad")),
    ):
        default = type(given).model_fields[key].default
        value = getattr(given, key)
        if value == default or (own and value == own[1]):
            continue
        reason = f"{own[0]} is {own[1]}" if own else "the tokenizer is learnt"
        raise UndustError(f"text_encoder.{key} is {value}, but {reason}: it has to be left out")


def first_stage_at(given: Path) -> Path:
    """The folder or file of the autoencoder that a recipe's `first_stage` names.

    Its own folder or file, the folder of a run that trained one, a model's folder or file, or a
    model by name. Raises UndustError if there is none.
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
