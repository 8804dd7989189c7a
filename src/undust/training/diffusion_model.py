"""The model of a diffusion recipe: first stage, network and conditions, which have to fit."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from typing import Self

import torch
from pydantic import Field, model_validator

from undust.conditioning.text import TextConditioner
from undust.conditioning.tokenizer import Tokenizer
from undust.diffusion.process import Process
from undust.formats import model_folder, standalone_vae
from undust.formats.components import DEFAULT_GUIDANCE, new_denoiser
from undust.networks.base import FirstStageNetwork
from undust.networks.config import (
    DenoiserConfig,
    DiTConfig,
    JiTConfig,
    PixArtConfig,
    TextEncoderConfig,
    UNet2DConfig,
    UNetConfig,
)
from undust.networks.identity import IdentityFirstStage
from undust.pipeline import LatentDiffusion
from undust.training.captions import CaptionsConfig
from undust.training.conditions import (
    LabelCondition,
    LabelsConfig,
    MapCondition,
    MapConfig,
)
from undust.training.configs import Place
from undust.training.denoising import DenoisingConfig
from undust.training.derived import (
    PIXELS,
    check_text_encoder,
    derived_network,
    empty_first_stage,
    first_stage_at,
)
from undust.training.latent_statistics import rescale_latents
from undust.training.noise_levels import AnyNoiseConfig, BetaNoiseConfig
from undust.training.spatial import (
    InpaintingConfig,
    LowResolutionConfig,
    low_resolution_process,
)
from undust.training.text import new_text_encoder

NETWORKS = ("unet", "unet2d", "dit", "pixart", "jit")
"""The tables of a recipe for the denoiser's network, of which it has one."""


class DiffusionModelConfig(DenoisingConfig, ABC):
    """The keys of a diffusion recipe that determine the model."""

    first_stage: Place = Field(
        description="the trained autoencoder: its folder, that of its run or of a model, a file, "
        'or a model\'s name; "pixels" trains on pixels, without one'
    )
    captions: CaptionsConfig = CaptionsConfig()
    labels: LabelsConfig | None = None
    maps: tuple[MapConfig, ...] = Field(default=(), description="maps beside each picture")
    low_resolution: LowResolutionConfig | None = None
    inpainting: InpaintingConfig | None = None
    diffusion: AnyNoiseConfig = BetaNoiseConfig()
    unet: UNetConfig | None = None
    unet2d: UNet2DConfig | None = None
    dit: DiTConfig | None = None
    pixart: PixArtConfig | None = None
    jit: JiTConfig | None = None
    self_conditioning: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of samples whose network input has the estimate of a first call, in "
        "channels of their own; 0: a network without them (Chen et al. 2022 train with 0.5)",
    )
    text_encoder: TextEncoderConfig | None = None
    text_encoder_from: Place | None = Field(
        default=None,
        description="folder of a model whose finished text encoders are used, in place of one that "
        "is trained",
    )

    @property
    def table(self) -> str:
        """The table of the denoiser's network."""
        return next(name for name in NETWORKS if getattr(self, name) is not None)

    @property
    def network(self) -> DenoiserConfig:
        """The configuration of the denoiser's network."""
        return getattr(self, self.table)

    @property
    def side_multiple(self) -> int:
        """Of which the sides of training pictures are multiples."""
        first_stage = empty_first_stage(self.first_stage, self.data.size)
        return first_stage.downsampling_factor * self.network.side_multiple

    @property
    def has_text(self) -> bool:
        """Whether the denoiser is conditioned on text."""
        return self.text_encoder is not None or self.text_encoder_from is not None

    @property
    def caption_fields(self) -> tuple[str, ...]:
        """The columns of captions that are trained with."""
        return self.captions.fields if self.has_text else ()

    def complete(self) -> Self:
        """With the first stage's place, and the network's sizes where they are left out.

        Raises UndustError for a first stage that is not found, and for sizes that contradict each
        other.
        """
        place, captions = first_stage_at(self.first_stage), self.captions
        if self.text_encoder:
            check_text_encoder(self.text_encoder, captions.vocabulary, captions.length)
        first_stage = empty_first_stage(place, self.data.size)
        network = derived_network(
            self.network,
            self.table,
            first_stage,
            self.data.size,
            text_width=self._text_width(),
            labels=self._labels(),
            extra=[*self._extra(first_stage.latent_channels)],
        )
        return self.model_copy(update={"first_stage": place, self.table: network})

    def new_model(
        self,
        process: Process,
        tokenizer: Tokenizer | None,
        finished: tuple[TextConditioner, ...],
        labels: LabelCondition | None,
        maps: MapCondition | None,
    ) -> LatentDiffusion:
        """The first stage with a new network, whose output is zero, and text encoders.

        tokenizer: of the text encoders, None without text; finished: those of them that are not
        trained.
        """
        first_stage: FirstStageNetwork = IdentityFirstStage()
        if self.first_stage != PIXELS:
            first_stage = standalone_vae.load(self.first_stage)
        if self.low_resolution and self.has_text:
            rescale_latents(first_stage, model_folder.UPSCALER_SCALE)  # that of diffusers' pipeline
        settings = self.network
        if labels:
            count = len(labels.classes) + (not settings.null_class)
            settings = settings.model_copy(update={settings.label_field: count})
        torch.manual_seed(self.seed)
        network = new_denoiser(settings)
        network.start_at_zero()
        texts = finished
        if tokenizer and self.text_encoder:
            texts = (new_text_encoder(self.text_encoder, tokenizer, self.captions.length),)
        guided = labels or texts or (maps and any(kind.guided for kind in maps.kinds))
        return LatentDiffusion(
            first_stage,
            network,
            texts,
            process,
            self.diffusion.prediction,
            guidance=DEFAULT_GUIDANCE if guided else 1.0,
            low_res_process=low_resolution_process() if self.low_resolution else None,
            max_noise_level=self.low_resolution.max_noise_level if self.low_resolution else 0,
            classes=labels.classes if labels else (),
            maps=maps.kinds if maps else (),
            self_conditioned=self.self_conditioning > 0,
        )

    def _text_width(self) -> int | None:
        if self.text_encoder_from is not None:
            texts = model_folder.read_texts(self.text_encoder_from)
            return sum(text.encoder.config.hidden_size for text in texts)
        return self.text_encoder.hidden_size if self.text_encoder else None

    def _labels(self) -> tuple[int, str] | None:
        """The number of label embeddings that is known without the data, and its reason."""
        if self.low_resolution:
            count = self.low_resolution.max_noise_level + 1
            return count, f"the low resolution has {count} noise levels"
        field = type(self.network).model_fields.get(self.network.label_field)
        if self.labels or field is None or field.default is None:
            return None
        return 1, "there are no labels"  # of a network that cannot be without

    def _extra(self, latent_channels: int) -> Iterator[tuple[int, str]]:
        """The input channels beside the latents', each with its reason."""
        if self.self_conditioning:
            yield latent_channels, "the last estimate has"
        if self.low_resolution:
            yield 3, "the small picture has"
        if self.inpainting:
            yield 1 + latent_channels, "the mask and the masked picture have"
        for each in self.maps:
            yield each.channels, f"the map {each.column} has"

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        given = [name for name in NETWORKS if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"has {' and '.join(given)}" if given else "has none"
            raise ValueError(f"one table of {', '.join(NETWORKS)} is the network; this {found}")
        network = self.network
        if isinstance(network, UNetConfig) and network.addition_embed_type == "text_time":
            raise ValueError("unet.addition_embed_type: text_time cannot be trained; leave it out")
        label = type(network).model_fields.get(network.label_field)
        given = getattr(network, network.label_field) if label else None
        if label and given not in (label.default, 1) and not self.low_resolution:
            raise ValueError(
                f"{self.table}.{network.label_field}: leave it out; it follows from the labels"
            )
        if self.low_resolution and (self.labels or self.inpainting):
            other = "labels" if self.labels else "inpainting"
            raise ValueError(f"low_resolution and {other}: one of them has to be left out")
        if self.text_encoder and self.text_encoder_from:
            raise ValueError("text_encoder and text_encoder_from: one of them has to be left out")
        if self.text_encoder and self.text_encoder.projects:
            raise ValueError("text_encoder.architectures has to be left out: CLIPTextModel")
        if not self.has_text and self.captions != CaptionsConfig():
            raise ValueError("captions: without a text_encoder there are none; leave them out")
        return self
