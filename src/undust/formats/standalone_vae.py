"""A first stage alone: for a model that has another one, or to train on its latents."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import cast

from undust.errors import UndustError, printable
from undust.formats.components import Components
from undust.formats.files import expanded
from undust.formats.folder import INDEX, read_json
from undust.formats.networks import load_autoencoder
from undust.formats.original.checkpoint import Checkpoint, scan_checkpoint
from undust.formats.original.model import load_first_stage
from undust.formats.safetensors_file import header
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig

KIND = "AutoencoderKL"


def place(path: Path) -> Path:
    """Where a first stage is: of a model's folder, inside."""
    path = expanded(path)
    return path / "vae" if (path / INDEX).is_file() else path


def first_stage(path: Path, parts: Components) -> Autoencoder:
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
    told = known.latent_channels, network.downsampling_factor, known.scaling_factor
    like = own.config.latent_channels, own.downsampling_factor, own.config.scaling_factor
    if (told, known.latents_std) != (like, own.config.latents_std):
        raise UndustError(
            f"{path} is a first stage of other latents than the model's: {told[0]} channels, "
            f"{told[1]} times smaller, scaled by {told[2]}"
        )
    return network


def config(path: Path) -> AutoencoderConfig:
    """The configuration of a first stage, with its latents' scale; no weights are read.

    path: a folder, a file of weights with its config.json beside it, or the single file of a whole
    model. Raises UndustError for anything else: a file that does not tell the scale, too.
    """
    if not path.is_dir() and not _configured(path):
        return cast(Autoencoder, _in_model(path).parts["vae"].network).config
    fields = read_json((path if path.is_dir() else path.parent) / "config.json")
    kind = fields.get("_class_name", KIND)
    if kind != KIND:
        raise UndustError(f"{path} is a component {printable(kind)}, not an {KIND}")
    return AutoencoderConfig.read(fields)


def load(path: Path) -> Autoencoder:
    """The first stage whose configuration `config` gives, in float32, ready for use."""
    if path.is_dir() or _configured(path):
        return load_autoencoder(path)
    network = cast(Autoencoder, _in_model(path).load()["vae"])
    return network.eval().requires_grad_(False)


def files(path: Path) -> list[Path]:
    """The files with the weights of such a first stage."""
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def _in_model(path: Path) -> Checkpoint:
    """The first stage in a whole model's file, whose variant tells the scale, and no other part."""
    found = scan_checkpoint(path)
    if found.variant is None:
        command = shlex.join(["undust", "convert", str(path), path.stem, "--to", "folder"])
        raise UndustError(
            f"{path} is a first stage alone, and such a file does not tell its latents' scale; "
            f"make a folder of it, with scaling_factor in its config.json: {command}"
        )
    if "vae" not in found.parts:
        raise UndustError(f"{path} has no first stage of its own")
    return replace(found, parts={"vae": found.parts["vae"]})


def _configured(path: Path) -> bool:
    """Whether a file is a component's, in diffusers' names, whose config.json is beside it."""
    beside = path.with_name("config.json")
    return beside.is_file() and any(
        name.startswith(("encoder.down_blocks.", "decoder.up_blocks."))
        for name in header(path).tensors
    )
