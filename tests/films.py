"""Tiny models of films, made by diffusers with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from undust.formats import safetensors_file
from undust.formats.original import keys
from undust.formats.original.key_map import to_original, with_prefix
from undust.formats.original.variants import FIRST_STAGE, UNET
from undust.formats.original.video import ENCODER, VISION
from undust.formats.video_folder import VideoComponents, read_video_folder

WIDTH = 24  # of the embedding of a picture
SCHEDULER = {  # of stabilityai/stable-video-diffusion-img2vid
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}


def tiny_pipeline(
    seed: int = 0, heads: int | None = None, **unet: Any
) -> StableVideoDiffusionPipeline:
    """Stable Video Diffusion with few channels; pictures are halved once in the first stage.

    heads: of all attention layers; None: several numbers, which no single file shows.
    """
    torch.manual_seed(seed)
    network = UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        num_attention_heads=heads or (2, 4),
        cross_attention_dim=WIDTH,
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=48,
        num_frames=4,
        **unet,
    )
    first_stage = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        layers_per_block=2,
        latent_channels=4,
    )
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=heads or 4,
            image_size=224,
            patch_size=56,
            projection_dim=WIDTH,
            hidden_act="gelu",
        )
    )
    pipeline = StableVideoDiffusionPipeline(
        vae=first_stage,
        image_encoder=encoder,
        unet=network,
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        feature_extractor=CLIPImageProcessor(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_film_model(folder: Path, seed: int = 0) -> Path:
    """The tiny model as a folder."""
    tiny_pipeline(seed).save_pretrained(folder)
    return folder


def original_layout(parts: VideoComponents) -> dict[str, Tensor]:
    """A model's tensors as a single file has them."""
    unet, vae = parts.unet, parts.autoencoder
    eye = parts.image_encoder.state_dict()
    halves = to_original(vae.state_dict(), keys.temporal_first_stage(vae.state_dict(), vae.config))
    prefix = {True: FIRST_STAGE, False: ENCODER}
    return {
        **to_original(
            unet.state_dict(), with_prefix(UNET, keys.video_unet(unet.state_dict(), unet.config))
        ),
        **{prefix[key.startswith("decoder.")] + key: tensor for key, tensor in halves.items()},
        **to_original(eye, with_prefix(VISION, keys.open_clip_vision(eye))),
    }


def write_single_file(path: Path, folder: Path) -> Path:
    """The model in a folder as a single file of the original layout."""
    layout = original_layout(read_video_folder(folder, None))
    safetensors_file.save(path, {key: tensor.contiguous() for key, tensor in layout.items()})
    return path
