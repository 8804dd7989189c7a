"""A first stage alone, for a model that has another one."""

from __future__ import annotations

from pathlib import Path

from undust.errors import UndustError
from undust.formats.networks import load_autoencoder
from undust.formats.original.model import load_first_stage
from undust.formats.parts import Parts
from undust.formats.safetensors_file import content_hash
from undust.networks.autoencoder import Autoencoder


def first_stage(path: Path, parts: Parts) -> tuple[Autoencoder, str]:
    """A first stage for a model, and the hash of its weights.

    A file does not say how its latents are scaled: as those that the U-Net was trained on. Raises
    UndustError for what is no first stage, and for one of other latents.
    """
    own = parts.autoencoder
    if path.is_dir():
        network = load_autoencoder(path, own.last_layer.dtype)
        weights = sorted(path.glob("*.safetensors"))
        known = network.config
    else:
        network = load_first_stage(path, own.last_layer.dtype)
        weights = [path]
        scales = {name: getattr(own.config, name) for name in ("scaling_factor", "shift_factor")}
        known = network.config.model_copy(update=scales)
    network.config = known
    told = known.latent_channels, network.factor, known.scaling_factor
    if told != (own.config.latent_channels, own.factor, own.config.scaling_factor):
        raise UndustError(
            f"{path} is a first stage of other latents than the model's: {told[0]} channels, "
            f"{told[1]} times smaller, scaled by {told[2]}"
        )
    return network, "".join(map(content_hash, weights))
