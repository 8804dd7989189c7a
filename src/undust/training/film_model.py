"""The model of a film recipe: first stage, U-Net and image encoder, which have to fit."""

from __future__ import annotations

from abc import ABC
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from undust.errors import UndustError
from undust.formats import standalone_vae
from undust.formats.scheduler import continuous_config
from undust.formats.vision_transformers import (
    CLIPVisionConfig,
    load_vision_transformer,
    new_clip_vision,
)
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import SpatioTemporalUNetConfig
from undust.networks.features.vision_transformer import VisionTransformer
from undust.networks.video import SpatioTemporalUNet, TemporalAutoencoder
from undust.training.configs import Place
from undust.training.derived import (
    derived_network,
    empty_first_stage,
    first_stage_at,
    model_at,
    with_derived,
)
from undust.training.noise_levels import EDMNoiseConfig, Sigma
from undust.training.task import TrainingConfig
from undust.video import VideoDiffusion

NUMBERS = "frames a second, motion and noise are 3 numbers of unet.addition_time_embed_dim channels"

IMAGE_SIZE = 224  # of pictures that diffusers gives an image encoder


class FilmNoiseConfig(EDMNoiseConfig):
    """EDM for latents of deviation 1, as Stable Video Diffusion has it.

    The defaults are its own (Blattmann et al. 2023b, appendix D), for films of 1024×576. Smaller
    films lose their content at lower noise: for those of 64 pixels p_mean −0.3 and sigma_max 40.
    """

    process: Literal["edm"] = Field(default="edm", description="EDM")
    sigma_max: Sigma = Field(default=700.0, description="highest σ of sampling")
    sigma_data: Sigma = Field(default=1.0, description="standard deviation of the latents: 1")
    p_mean: float = Field(default=0.7, ge=-20, le=20, description="mean of log σ in training")
    p_std: float = Field(
        default=1.6, gt=0, le=20, description="standard deviation of log σ in training"
    )
    prediction: Literal["edm", "v_prediction", "sample", "epsilon"] = Field(
        default="v_prediction", description="output of the network: v_prediction"
    )


class FilmModelConfig(TrainingConfig, ABC):
    """The keys of a film recipe that determine the model: an earlier one, or a new one's parts."""

    frames: int = Field(default=14, ge=2, le=1024, description="frames of a film in training")
    model: Place | None = Field(
        default=None,
        description="a model of films to start from: its folder, file, run or name; it has its "
        "own first stage, U-Net, image encoder and process",
    )
    first_stage: Place | None = Field(
        default=None,
        description="of a new model, the trained autoencoder: its folder, that of its run or of a "
        "model, a file, or a model's name",
    )
    unet: SpatioTemporalUNetConfig | None = None
    image_encoder: CLIPVisionConfig | None = None
    image_encoder_from: Place | None = Field(
        default=None,
        description="folder of a CLIP image encoder that is finished, in place of one that is "
        "trained",
    )
    diffusion: FilmNoiseConfig = FilmNoiseConfig()

    def complete(self) -> Self:
        """With the places of other models, and the network's sizes where they are left out.

        Raises UndustError for what is not found, and for sizes that contradict each other.
        """
        if self.model is not None:
            return self.model_copy(update={"model": model_at(self.model)})
        assert self.first_stage
        assert self.unet
        continuous_config(self.diffusion.process_of(), self.diffusion.prediction)
        place = first_stage_at(self.first_stage)
        first_stage = empty_first_stage(place, self.data.size)
        if not isinstance(first_stage, Autoencoder | TemporalAutoencoder):
            raise UndustError(
                f"first_stage: {place} is a {type(first_stage).__name__}; films need a KL "
                "autoencoder"
            )
        channels = first_stage.latent_channels
        beside = [(channels, "the latent of the first frame has")]
        unet = derived_network(self.unet, "unet", first_stage, self.data.size, extra=beside)
        width, reason = self._embedding()
        derived = {
            "cross_attention_dim": (width, reason),
            "projection_class_embeddings_input_dim": (3 * unet.addition_time_embed_dim, NUMBERS),
            "num_frames": (self.frames, f"frames is {self.frames}"),
        }
        unet = with_derived(unet, "unet", derived)
        return self.model_copy(update={"first_stage": place, "unet": unet})

    def new_model(self) -> VideoDiffusion:
        """The model that is trained, its new networks with random weights of the seed."""
        if self.model is not None:
            return VideoDiffusion.load(self.model, low_memory=False)
        assert self.first_stage
        assert self.unet
        autoencoder = standalone_vae.load(self.first_stage)
        assert isinstance(autoencoder, Autoencoder | TemporalAutoencoder)
        torch.manual_seed(self.seed)
        unet = SpatioTemporalUNet(self.unet)
        unet.start_at_zero()
        process = self.diffusion.process_of()
        prediction = self.diffusion.prediction
        return VideoDiffusion(autoencoder, unet, self._image_encoder(), process, prediction)

    def _image_encoder(self) -> VisionTransformer:
        if self.image_encoder is not None:
            return new_clip_vision(self.image_encoder)
        assert self.image_encoder_from
        return load_vision_transformer(self.image_encoder_from)

    def _embedding(self) -> tuple[int, str]:
        """The width of a picture's embedding, and the reason."""
        if self.image_encoder is not None:
            width = self.image_encoder.projection_dim
            return width, f"image_encoder.projection_dim is {width}"
        assert self.image_encoder_from
        width = load_vision_transformer(self.image_encoder_from).shape.projection
        if width is None:
            raise UndustError(f"image_encoder_from: {self.image_encoder_from} has no projection")
        return width, f"the embeddings of {self.image_encoder_from} have {width} channels"

    @model_validator(mode="after")
    def _whole_model(self) -> Self:
        parts = ("first_stage", "unet", "image_encoder", "image_encoder_from")
        given = [name for name in parts if getattr(self, name) is not None]
        if self.model is not None:
            if given:
                raise ValueError(f"{given[0]}: the model has its own; leave it out")
            return self
        if self.first_stage is None or self.unet is None:
            raise ValueError(
                "a new model needs first_stage and a table [unet]; or model, to start from"
            )
        if (self.image_encoder is None) == (self.image_encoder_from is None):
            raise ValueError("a new model needs a table [image_encoder], or image_encoder_from")
        if self.image_encoder is not None and self.image_encoder.image_size != IMAGE_SIZE:
            raise ValueError(
                f"image_encoder.image_size has to be {IMAGE_SIZE}, or to be left out: diffusers "
                "gives it pictures of that size"
            )
        return self
