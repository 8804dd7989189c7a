"""Models of films in a single file: Stable Video Diffusion's svd.safetensors, svd_xt.safetensors.

The file is the state of sgm's `DiffusionEngine` (Blattmann et al. 2023b; generative-models,
scripts/sampling/configs/svd.yaml): the U-Net, a first stage, and the embedders of the first frame,
an OpenCLIP and a second first stage.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import cast

import torch

from undust.diffusion.process import EDM
from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.components import COMPONENTS
from undust.formats.networks import empty_network
from undust.formats.original import infer, key_map, keys
from undust.formats.original.checkpoint import (
    IGNORED,
    Checkpoint,
    Component,
    empty_part,
    together,
)
from undust.formats.original.detect import Evidence, is_of_films, is_over_frames
from undust.formats.original.infer import Shapes
from undust.formats.original.variants import (
    FIRST_STAGE,
    SIZES,
    UNET,
    V_PREDICTION,
    NetworkSpec,
    Variant,
)
from undust.formats.video_folder import VideoComponents
from undust.formats.vision_transformers import CLIP_COLOURS
from undust.networks.config import NetworkConfig
from undust.networks.features.vision_transformer import VisionTransformer
from undust.networks.video import SpatioTemporalUNet, TemporalAutoencoder

OPEN_CLIP = "conditioner.embedders.0.open_clip.model."
VISION = f"{OPEN_CLIP}visual."
# The first frame's latent is of this autoencoder, which has a `quant_conv`. The encoder under
# `first_stage_model.` has none, was used in training only, and need not have the same weights.
ENCODER = "conditioner.embedders.3.encoder."
FIRST_STAGE_CLASS = "AutoencoderKLTemporalDecoder"
UNUSED = {
    **IGNORED,
    "CLIP's text encoder": rf"{re.escape(OPEN_CLIP)}(?!visual\.).+",
    "decoder of pictures": rf"{re.escape(ENCODER)}(decoder\..+|post_quant_conv\.(weight|bias))",
    "encoder of training": rf"{re.escape(FIRST_STAGE)}encoder\..+",
}
FRAMES, XT_FRAMES = 14, 25  # of films in the training of svd and svd_xt; no tensor tells
SVD = Variant(
    "svd",
    "Stable Video Diffusion",
    NetworkSpec("UNetSpatioTemporalConditionModel", UNET, infer.video_unet, keys.video_unet),
    (),
    1024,
    0.18215,
    first_stage=NetworkSpec(
        FIRST_STAGE_CLASS, FIRST_STAGE, infer.temporal_first_stage, keys.temporal_first_stage
    ),
    training_process=partial(EDM, 0.002, 700.0, 1.0),
    prediction=V_PREDICTION,
    channels=8,
    added=SIZES,
    height=576,
)


def is_video_file(path: Path) -> bool:
    """Whether a safetensors file has a U-Net over films. Raises UndustError for a damaged file."""
    return is_of_films(_shapes(path))


def scan_video_file(path: Path) -> Checkpoint:
    """The contents of a model of films in a single file, by its header.

    Parts: unet, vae and image_encoder. Raises UndustError for a file that is damaged or of another
    model, and for tensors that are missing, unknown or of another shape.
    """
    shapes = _shapes(path)
    if not is_of_films(shapes):
        kind = "of films: it has no U-Net over frames"
        if any(key.startswith(UNET) for key in shapes):
            kind = "of films but one of pictures; use it with `undust generate`"
        raise UndustError(f"{path} is not a model {kind}")
    try:
        parts = {
            "unet": empty_part(shapes, SVD.network, num_frames=_frames(path)),
            "vae": _first_stage(shapes),
            "image_encoder": _image_encoder(shapes, path.stem),
        }
        ours, where = together(parts)
        wanted = {spec.key for spec in where.values()}
        beside = {key: _unused(key) for key in shapes.keys() - wanted}
        entries = safetensors_file.header(path).tensors
        found = {key: entry for key, entry in entries.items() if not beside.get(key)}
        key_map.check_tensors(found, ours, where, SVD.title)
    except UndustError as error:
        raise UndustError(f"{path}: {error}") from error
    facts = [
        Evidence("U-Net over films", min(filter(is_over_frames, shapes))),
        Evidence(f"{_frames(path)} frames in training", "the file's name; no tensor tells"),
    ]
    factor = cast(TemporalAutoencoder, parts["vae"].network).downsampling_factor
    ignored = dict(Counter(sorted(beside.values())))
    return Checkpoint(path, SVD, facts, parts, ignored, factor, ())


def read_video_file(path: Path, dtype: torch.dtype | None) -> VideoComponents:
    """The model of films in a single file, its weights as `dtype`, or None: each as it is.

    Settings that tensors do not show are those published. Raises UndustError as `scan_video_file`.
    """
    networks = scan_video_file(path).load(dtype)
    # A transposed projection would be multiplied in another order, and round otherwise than the
    # same model's from a folder.
    for parameter in networks["image_encoder"].parameters():
        parameter.data = parameter.data.contiguous()
    return VideoComponents(
        cast(TemporalAutoencoder, networks["vae"]),
        cast(SpatioTemporalUNet, networks["unet"]),
        cast(VisionTransformer, networks["image_encoder"]),
        SVD.process(),
        SVD.prediction,
    )


def _shapes(path: Path) -> dict[str, key_map.Shape]:
    return {key: entry.shape for key, entry in safetensors_file.header(path).tensors.items()}


def _frames(path: Path) -> int:
    """The number of frames in training: 25 for names such as svd_xt and svd_xt_1_1, else 14."""
    return XT_FRAMES if "xt" in re.split(r"[\W_]+", path.stem.lower()) else FRAMES


def _first_stage(shapes: Shapes) -> Component:
    """The encoder of the first frame and the decoder of films."""
    half = f"{FIRST_STAGE}decoder."
    below = {key.removeprefix(ENCODER): shapes[key] for key in shapes if key.startswith(ENCODER)}
    below = {key: shape for key, shape in below.items() if not key.startswith("decoder.")}
    below |= {key.removeprefix(FIRST_STAGE): shapes[key] for key in shapes if key.startswith(half)}
    try:
        config = infer.temporal_first_stage(below, scaling_factor=SVD.scaling_factor)
    except UndustError as error:
        raise UndustError(f"{ENCODER}… and {half}…: {error}") from error
    network = COMPONENTS[FIRST_STAGE_CLASS].empty(config)
    places = {
        name: spec._replace(
            key=(FIRST_STAGE if name.startswith("decoder.") else ENCODER) + spec.key
        )
        for name, spec in keys.temporal_first_stage(network.state_dict(), config).items()
    }
    return Component(network, places)


def _image_encoder(shapes: Shapes, name: str) -> Component:
    """OpenCLIP's vision transformer; name: for reports."""
    below = {key.removeprefix(VISION): shapes[key] for key in shapes if key.startswith(VISION)}
    try:
        shape = infer.open_clip_vision(below, CLIP_COLOURS)
    except UndustError as error:
        raise UndustError(f"{VISION}…: {error}") from error
    network = empty_network(lambda _: VisionTransformer(shape, f"CLIP ({name})"), NetworkConfig())
    return Component(
        network, key_map.with_prefix(VISION, keys.open_clip_vision(network.state_dict()))
    )


def _unused(key: str) -> str:
    """A description of a tensor that no network needs; "" for an unknown one."""
    return next((what for what, names in UNUSED.items() if re.fullmatch(names, key)), "")
