"""A first stage alone: in the place of a model's own, or to train on its latents."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from undust.errors import UndustError
from undust.formats.components import Components, empty_component, load_first_stage
from undust.formats.files import expanded
from undust.formats.folder import INDEX
from undust.formats.original.checkpoint import Checkpoint, scan_checkpoint
from undust.formats.safetensors_file import header
from undust.networks.autoencoder import Autoencoder
from undust.networks.base import FirstStageNetwork

SCALES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


def locate(path: Path) -> Path:
    """The folder or file of a first stage: of a model's folder, inside."""
    path = expanded(path)
    return path / "vae" if (path / INDEX).is_file() else path


def replacement(path: Path, parts: Components) -> FirstStageNetwork:
    """A first stage for a model: a folder, a file of one with its config.json beside it, or a file.

    A file alone does not tell the scale of its latents: that of the model's own is taken. Raises
    UndustError for a path that holds no first stage, and for one of other latents.
    """
    own = parts.autoencoder
    if _has_config(path):
        network = load_first_stage(path, parts.dtype)
    else:
        network = _load_alone(path, parts.dtype)
        scales = {name: getattr(own.config, name, None) for name in SCALES}
        network.config = network.config.model_copy(update=scales)
    # A tiny first stage has the latents of another one, and tells channels and factor alone.
    if network.latent_space not in (own.latent_space, own.latent_space[:2]):
        raise UndustError(
            f"{path} is a first stage of other latents than the model's: "
            f"{network.latent_channels} channels, {network.downsampling_factor} times smaller, "
            f"scaled by {network.scale(torch.zeros(1))[0]}"
        )
    return network


def empty(path: Path) -> FirstStageNetwork:
    """The first stage that `load` loads, without weights.

    path: a folder, a file of weights with its config.json beside it, or the single file of a whole
    model. Raises UndustError for anything else: a file that does not tell the scale, too.
    """
    if _has_config(path):
        return empty_component(path, FirstStageNetwork)
    return cast(Autoencoder, _in_model(path).parts["vae"].network)


def load(path: Path) -> FirstStageNetwork:
    """The first stage at a path, as `empty` takes it, in float32, ready for use."""
    if _has_config(path):
        return load_first_stage(path)
    network = cast(Autoencoder, _in_model(path).load()["vae"])
    return network.eval().requires_grad_(False)


def files(path: Path) -> list[Path]:
    """The files with the weights of such a first stage."""
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def _load_alone(path: Path, dtype: torch.dtype) -> Autoencoder:
    """The first stage in a file that holds nothing else."""
    found = scan_checkpoint(path)
    if found.variant is not None:
        raise UndustError(f"{path} is a {found.variant.title}; a first stage alone is needed")
    return cast(Autoencoder, found.load(dtype)["vae"])


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


def _has_config(path: Path) -> bool:
    """Whether it is a component's folder, or a file of published names with its config.json."""
    if path.is_dir():
        return True
    beside = path.with_name("config.json")
    return beside.is_file() and any(
        name.startswith(("encoder.down_blocks.", "decoder.up_blocks.", "decoder.layers."))
        for name in header(path).tensors
    )
