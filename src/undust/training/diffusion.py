"""Training a new denoiser, on latents that are encoded once or on pixels, under any conditions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import nn

from undust.conditioning.tokenizer import Tokenizer
from undust.formats import model_folder, standalone_vae
from undust.formats.components import type_of
from undust.training.buckets import BucketRule
from undust.training.caches import LatentCache
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.conditions import LabelCondition, MapCondition, TrainingCondition
from undust.training.data import Observe
from undust.training.denoising import DenoisingTask, whole_pictures
from undust.training.derived import PIXELS
from undust.training.diffusion_model import DiffusionModelConfig
from undust.training.latent_statistics import unusual_deviation
from undust.training.sources import TrainingData, content_digest
from undust.training.spatial import InpaintingCondition, LowResolutionCondition
from undust.training.text import Captions, learnt_tokenizer


class DiffusionConfig(DiffusionModelConfig):
    """Trains a denoiser, with its own text encoder or a finished one, or without text."""

    kind: Literal["diffusion"] = Field(description="what is trained")

    def task(
        self, out: Path, resumed: TrainingCheckpoint | None, observe: Observe
    ) -> DiffusionTask:
        """The training of the denoiser."""
        return DiffusionTask(self, out, resumed, observe)


class DiffusionTask(DenoisingTask):
    """A new model: its denoiser and text encoder are trained."""

    config: DiffusionConfig

    def __init__(
        self,
        config: DiffusionConfig,
        out: Path,
        resumed: TrainingCheckpoint | None = None,
        observe: Observe = lambda _done, _all: None,
    ) -> None:
        """As `TrainingConfig.task`. observe: called while images are encoded as latents."""
        whole_pictures(config)
        process, noise_levels, weighting = config.diffusion.build()
        data = TrainingData(
            config.data,
            config.seed,
            config.caption_fields,
            maps=[each.column for each in config.maps],
            buckets=BucketRule(config.side_multiple, config.run.batch),
        )
        notes, inputs = data.notes, dict[str, str]()
        if config.first_stage != PIXELS:
            inputs["first_stage"] = content_digest(standalone_vae.files(config.first_stage))
        text, finished = None, ()
        if config.has_text:
            learnt = partial(learnt_tokenizer, config.captions, resumed, out)
            if config.text_encoder_from:
                finished = model_folder.read_texts(config.text_encoder_from)
                for each in finished:
                    each.encoder.eval().requires_grad_(False)
            tokenizer = finished[0].tokenizer if finished else None
            text = Captions(
                config.captions,
                data,
                lambda texts: tokenizer or learnt(texts),
                finished=finished,
                required=resumed is None,
            )
            notes += text.notes
        labels = LabelCondition(config.labels, data) if config.labels else None
        maps = MapCondition(config.maps, data) if config.maps else None
        conditions: list[TrainingCondition] = [each for each in (labels, maps) if each]
        model = config.new_model(process, text and text.tokenizer, finished, labels, maps)
        if config.low_resolution:
            conditions.append(LowResolutionCondition(config.low_resolution, data, model))
        if config.inpainting:
            conditions.append(InpaintingCondition(config.inpainting, data, model))
        modules: dict[str, nn.Module] = {type_of(model.unet).folder: model.unet}
        if config.text_encoder:
            modules["text_encoder"] = model.texts[0].encoder
        self.self_conditioning = config.self_conditioning
        super().__init__(
            config,
            out,
            resumed,
            observe,
            model=model,
            modules=modules,
            data=data,
            text=text,
            conditions=conditions,
            levels=(noise_levels, weighting),
            inputs=inputs,
            notes=notes,
        )
        if isinstance(self.latents, LatentCache) and not resumed:
            latents, place = self.latents.checked, config.first_stage
            self.notes += unusual_deviation(model.autoencoder, latents, place)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the text encoder, if one is trained."""
        return self.model.texts[0].tokenizer if self.config.text_encoder else None

    def publish(self, folder: Path, *, brief: bool = False) -> None:  # noqa: ARG002
        """Writes the whole model as a diffusers folder."""
        self.model.save(folder)
