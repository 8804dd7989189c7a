"""The keys of a diffusion recipe that follow from its other keys and the first stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

from undust.errors import UndustError
from undust.formats import locate, standalone_vae
from undust.formats.folder import INDEX
from undust.networks.base import FirstStageNetwork
from undust.networks.config import DenoiserConfig, TextEncoderConfig
from undust.networks.identity import IdentityFirstStage

PIXELS = Path("pixels")  # `first_stage` of a recipe for diffusion in pixel space
C = TypeVar("C", bound=DenoiserConfig)


def empty_first_stage(place: Path, size: int) -> FirstStageNetwork:
    """The first stage of a recipe, without weights.

    place: as `first_stage_at` finds it; size: of the images, pixels. Raises UndustError if there is
    none, and for a size that it cannot encode.
    """
    if place == PIXELS:
        return IdentityFirstStage()
    try:
        network = standalone_vae.empty(place)
    except UndustError as error:
        raise UndustError(f"first_stage: {error}") from error
    factor = network.downsampling_factor
    if size % factor:
        fits = max(1, round(size / factor)) * factor
        raise UndustError(
            f"data.size is {size}, which is not divisible by {factor}, the factor of the first "
            f"stage {place}; {fits} would be"
        )
    return network


def derived_network(
    given: C,
    table: str,
    first_stage: FirstStageNetwork,
    size: int,
    *,
    text_width: int | None = None,
    labels: tuple[int, str] | None = None,
    extra: Sequence[tuple[int, str]] = (),
) -> C:
    """The configuration of a denoiser with the sizes that are left out.

    table: its name in the recipe; size: of the images, pixels; text_width: of the text encoders,
    None without text; labels: number of label embeddings and its reason, None where they are left
    as they are; extra: further input channels, each with its reason. Raises UndustError for sizes
    that contradict each other, with both, and for a condition that the network does not take.
    """
    channels, factor = first_stage.latent_channels, first_stage.downsampling_factor
    latents = f"the first stage's latents have {channels} channels"
    beside = "".join(f" and {reason} {count}" for count, reason in extra)
    derived: dict[str, tuple[object, str]] = {
        "sample_size": (
            size // factor,
            f"data.size is {size} and the first stage's factor {factor}",
        ),
        "in_channels": (channels + sum(count for count, _ in extra), latents + beside),
        "out_channels": (channels, latents),
    }
    if text_width is None and given.needs_text:
        raise UndustError(
            f"{table} needs text: add a table text_encoder, or use unet2d, a U-Net without text"
        )
    if text_width is not None:
        if not given.text_field:
            raise UndustError(f"{table} takes no text: leave out text_encoder, or use unet")
        reason = f"text_encoder.hidden_size is {text_width}"
        derived[given.text_field] = (text_width, reason)
    if labels is not None:
        if not given.label_field:
            raise UndustError(f"{table} takes no labels")
        derived[given.label_field] = labels
    return with_derived(given, table, derived)


def with_derived(given: C, table: str, derived: Mapping[str, tuple[object, str]]) -> C:
    """The configuration of a network with the values of keys that are left out.

    table: its name in the recipe; derived: of each key the value and its reason. Raises UndustError
    for a key with another value, with both.
    """
    fields = given.model_dump(exclude_unset=True, exclude_none=True)
    for key, (value, reason) in derived.items():
        own = fields.get(key, value)
        if own != value and (not isinstance(own, tuple) or {*cast("tuple[int]", own)} != {value}):
            raise UndustError(
                f"{table}.{key} is {own}, but {reason}: it has to be {value}, or to be left out"
            )
    return type(given).read({**{key: value for key, (value, _) in derived.items()}, **fields})


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


def first_stage_at(given: Path, key: str = "first_stage") -> Path:
    """The folder or file of the autoencoder that a key of a recipe names.

    given: that folder or file, the folder of a run that trained one, a model's folder or file, or
    the name of a model, or "pixels" for none; key: for errors. Raises UndustError if there is none.
    """
    if given == PIXELS:
        return given
    found = _found(given, key)
    if found.is_file():
        return found
    for place in (found, found / "model"):
        if (standalone_vae.locate(place) / "config.json").is_file():
            return standalone_vae.locate(place)
    raise UndustError(
        f"{key}: {found} has no autoencoder; expected the folder of one, of a run that "
        "trained one, or of a model"
    )


def model_at(given: Path) -> Path:
    """The model that the key `model` of a recipe names: a name, a folder, a file, or a run.

    Raises UndustError if there is none.
    """
    if (given / "model").is_dir() and not (given / INDEX).is_file():
        return given / "model"
    _found(given, "model")
    return given


def _found(given: Path, key: str) -> Path:
    """As `locate.find`; a path in a folder that exists is not a name on the hub."""
    if not given.exists() and len(given.parts) > 1 and Path(given.parts[0]).is_dir():
        raise UndustError(f"{key}: {given} does not exist")
    try:
        return locate.find(given)
    except UndustError as error:
        raise UndustError(f"{key}: {error}") from error
