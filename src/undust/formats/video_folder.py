"""Models of films as diffusers folders: Stable Video Diffusion (Blattmann et al. 2023b)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from undust.diffusion.process import Process
from undust.errors import UndustError, quoted
from undust.formats.components import load_component, save_component, type_of
from undust.formats.files import atomic_folder
from undust.formats.folder import INDEX, read_json, read_model_index, write_json
from undust.formats.known_hashes import known_hash
from undust.formats.model_folder import VERSION, VIDEO_PIPELINE
from undust.formats.scheduler import continuous_config, read_scheduler
from undust.formats.vision_transformers import (
    CLIP_COLOURS,
    load_vision_transformer,
    save_clip_vision,
)
from undust.networks.autoencoder import Autoencoder
from undust.networks.base import FirstStageNetwork
from undust.networks.features.vision_transformer import VisionTransformer
from undust.networks.unet import AnyUNet
from undust.networks.video import SpatioTemporalUNet, TemporalAutoencoder

NUMBERS = 3  # frames a second, motion bucket, noise on the first frame


@dataclass(eq=False)
class VideoComponents:
    """What goes together as one model of films, which begin with a given picture.

    autoencoder: with a decoder over films, or one of pictures, which decodes each frame alone;
    image_encoder: CLIP's, with its projection; process and prediction: those that the U-Net was
    trained with. Raises UndustError for components that do not fit one another.
    """

    autoencoder: TemporalAutoencoder | Autoencoder
    unet: SpatioTemporalUNet
    image_encoder: VisionTransformer
    process: Process
    prediction: str

    def __post_init__(self) -> None:
        config, channels = self.unet.config, self.autoencoder.latent_channels
        width = self.image_encoder.shape.projection or 0
        if config.text_widths != frozenset({width}):
            raise UndustError(
                f"the components do not fit: the picture's embedding has width {width} and the "
                f"U-Net takes {' and '.join(map(str, sorted(config.text_widths)))}"
            )
        if (config.in_channels, config.out_channels) != (2 * channels, channels):
            raise UndustError(
                f"the components do not fit: a U-Net with {config.in_channels} input and "
                f"{config.out_channels} output channels, for latents of {channels}"
            )
        if config.num_numbers != NUMBERS:
            raise UndustError(
                f"the U-Net takes {config.num_numbers} numbers beside the picture, not {NUMBERS}"
            )

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks, by their names in a model folder."""
        return {"vae": self.autoencoder, "unet": self.unet, "image_encoder": self.image_encoder}


def is_video_folder(folder: Path) -> bool:
    """Whether a folder's model_index.json is that of a model of films."""
    index = folder / INDEX
    return index.is_file() and read_json(index).get("_class_name") == VIDEO_PIPELINE


def read_video_folder(folder: Path, dtype: torch.dtype | None) -> VideoComponents:
    """The model in a folder, its weights as `dtype`, or None: each as it is.

    Raises UndustError, naming the file, for a folder that is not a whole model of films.
    """
    read_model_index(folder)  # or its error
    kind = read_json(folder / INDEX).get("_class_name")
    if kind != VIDEO_PIPELINE:
        raise UndustError(
            f"{folder} is a {quoted(kind)}, not a {VIDEO_PIPELINE}; models of pictures are for "
            "`undust generate`"
        )
    unet = load_component(folder / "unet", AnyUNet, dtype)
    autoencoder = load_component(folder / "vae", FirstStageNetwork, dtype)
    if not isinstance(unet, SpatioTemporalUNet):
        raise UndustError(f"{folder} has a U-Net of pictures, not of films")
    if not isinstance(autoencoder, TemporalAutoencoder | Autoencoder):
        raise UndustError(f"{folder}: a {type(autoencoder).__name__} is no first stage of films")
    place = folder / "scheduler" / "scheduler_config.json"
    process, prediction = read_scheduler(read_json(place), place)
    encoder = load_vision_transformer(folder / "image_encoder", dtype)
    return VideoComponents(autoencoder, unet, encoder, process, prediction)


def write_video_folder(
    parts: VideoComponents,
    folder: Path,
    dtype: torch.dtype | None = None,
    wrote: Callable[[int], object] = int,
) -> None:
    """Writes a model as diffusers' StableVideoDiffusionPipeline does, at once.

    dtype: of the weights in the files, None keeps each as it is; wrote: as `safetensors_file.save`.
    Raises UndustError, and changes nothing, if the folder exists and is no model, and for a process
    that the pipeline does not sample.
    """
    scheduler = continuous_config(parts.process, parts.prediction)
    index = {
        "_class_name": VIDEO_PIPELINE,
        "_diffusers_version": VERSION,
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", type_of(parts.unet).class_name],
        "vae": ["diffusers", type_of(parts.autoencoder).class_name],
    }
    side = parts.image_encoder.shape.image_size
    mean, deviation = CLIP_COLOURS
    extractor = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": side, "width": side},
        "size": {"shortest_edge": side},
        "image_mean": mean,
        "image_std": deviation,
    }
    with atomic_folder(folder, replace=(folder / INDEX).is_file()) as building:
        save_component(building / "unet", parts.unet, dtype, wrote)
        save_component(building / "vae", parts.autoencoder, dtype, wrote)
        save_clip_vision(building / "image_encoder", parts.image_encoder, dtype, wrote)
        for name, file, fields in (
            ("scheduler", "scheduler_config", scheduler),
            ("feature_extractor", "preprocessor_config", extractor),
        ):
            (building / name).mkdir()
            write_json(building / name / f"{file}.json", fields)
        write_json(building / INDEX, index)


def video_hash(folder: Path) -> str:
    """A hash of the weights in a folder, 10 digits."""
    files = (
        file
        for name in ("image_encoder", "unet", "vae")
        for file in sorted((folder / name).glob("*.safetensors"))
    )
    return hashlib.sha256("".join(map(known_hash, files)).encode()).hexdigest()[:10]
