"""A first stage alone, for a model that has another one."""

from __future__ import annotations

from pathlib import Path

from undust.errors import UndustError
from undust.formats.files import expanded
from undust.formats.folder import INDEX
from undust.formats.networks import load_autoencoder
from undust.formats.original.model import load_first_stage
from undust.formats.parts import Parts
from undust.formats.safetensors_file import header
from undust.networks.autoencoder import Autoencoder


def place(path: Path) -> Path:
    """Where a first stage is: of a model's folder, inside."""
    path = expanded(path)
    return path / "vae" if (path / INDEX).is_file() else path


def first_stage(path: Path, parts: Parts) -> Autoencoder:
    """A first stage for a model: a folder, a file of one with its config.json beside it, or a file.

    A file alone does not say how its latents are scaled: as those that the U-Net was trained on.
    Raises UndustError for what is no first stage, and for one of other latents.
    """
    own = parts.autoencoder
    if path.is_dir() or _configured(path):
        network = load_autoencoder(path, own.last_layer.dtype)
        known = network.config
    else:
        network = load_first_stage(path, own.last_layer.dtype)
        names = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
        scales = {name: getattr(own.config, name) for name in names}
        known = network.config.model_copy(update=scales)
    network.config = known
    told = known.latent_channels, network.factor, known.scaling_factor
    like = own.config.latent_channels, own.factor, own.config.scaling_factor
    if (told, known.latents_std) != (like, own.config.latents_std):
        raise UndustError(
            f"{path} is a first stage of other latents than the model's: {told[0]} channels, "
            f"{told[1]} times smaller, scaled by {told[2]}"
        )
    return network


def _configured(path: Path) -> bool:
    """Whether a file is a component's, in diffusers' names, whose config.json is beside it."""
    beside = path.with_name("config.json")
    return beside.is_file() and any(
        name.startswith(("encoder.down_blocks.", "decoder.up_blocks."))
        for name in header(path).tensors
    )
