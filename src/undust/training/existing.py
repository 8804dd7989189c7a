"""The base of every kind of training that starts from a model that exists.

To add one: a configuration derived from `ExistingModelConfig`, and a subclass of
`ExistingModelTask` that loads the model (`config.loaded()`), makes the modules that are trained and
calls the base's `__init__` with them; see also `denoising`. `finetune` is the shortest example.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from undust.errors import UndustError, unknown
from undust.formats import standalone_vae
from undust.formats.components import type_of
from undust.pipeline import LatentDiffusion
from undust.training.buckets import BucketRule
from undust.training.caches import LatentCache
from undust.training.captions import CaptionChoiceConfig
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.conditions import LabelCondition, LabelsConfig, TrainingCondition
from undust.training.configs import Place
from undust.training.data import Batch, Observe
from undust.training.denoising import DenoisingConfig, DenoisingTask, Samples, whole_pictures
from undust.training.derived import first_stage_at, model_at
from undust.training.latent_statistics import unusual_deviation
from undust.training.noise_levels import NoiseLevelsConfig
from undust.training.prior import PriorConfig, class_pictures, prior_batch
from undust.training.sources import TrainingData, content_digest
from undust.training.spatial import (
    InpaintingCondition,
    InpaintingConfig,
    LowResolutionCondition,
    LowResolutionConfig,
)
from undust.training.text import Captions


class ExistingModelConfig(DenoisingConfig, ABC):
    """The keys of every kind that starts from a model that exists."""

    model: Place = Field(
        description="the model to start from: a name, a folder, a checkpoint file, or a run"
    )
    first_stage: Place | None = Field(
        default=None,
        description="another first stage for the model, with as many channels: its folder, that of "
        "its run or of a model, or a file",
    )
    prompt: str | None = Field(
        default=None,
        min_length=1,
        description="caption of every picture, in place of their own, such as 'a photo of sks dog'",
    )
    captions: CaptionChoiceConfig = CaptionChoiceConfig()
    labels: LabelsConfig | None = None
    diffusion: NoiseLevelsConfig = NoiseLevelsConfig()
    prior: PriorConfig | None = None

    def complete(self) -> Self:
        """With the place of the model and of its first stage.

        Raises UndustError for one that is not found.
        """
        found = {"model": model_at(self.model)}
        if self.first_stage is not None:
            found["first_stage"] = first_stage_at(self.first_stage)
        return self.model_copy(update=found)

    def loaded(self) -> LatentDiffusion:
        """The model, in float32, with the recipe's first stage.

        Raises UndustError for a model that cannot be trained on these conditions, and for a first
        stage of other latents.
        """
        model = LatentDiffusion.load(self.model)
        if self.first_stage is not None:
            other, own = standalone_vae.load(self.first_stage), model.autoencoder
            kinds = [(each.latent_channels, each.downsampling_factor) for each in (other, own)]
            if kinds[0] != kinds[1]:
                raise UndustError(
                    f"first_stage: {self.first_stage} has {kinds[0][0]} channels and is "
                    f"{kinds[0][1]} times smaller; the model needs {kinds[1][0]} and {kinds[1][1]}"
                )
            model = replace(model, autoencoder=other)
        if model.maps:
            raise UndustError(
                f"model: {self.model} takes maps; only a new model is trained on them"
            )
        if bool(model.classes) != bool(self.labels):
            needs = "takes classes: add a table [labels]" if model.classes else "takes no classes"
            raise UndustError(f"labels: {self.model} {needs}")
        captions = self.captions != CaptionChoiceConfig()
        if not model.texts and (self.prompt or self.prior or captions):
            raise UndustError(
                f"model: {self.model} takes no text: leave out prompt, captions, prior"
            )
        for network in model.networks.values():
            network.to(self.run.place)
        return model

    @model_validator(mode="after")
    def _one_source_of_captions(self) -> Self:
        if self.prompt and self.captions != CaptionChoiceConfig(drop=self.captions.drop):
            raise ValueError("prompt: it replaces the captions; leave out one of them")
        return self


class ExistingModelTask(DenoisingTask):
    """The objective of a model that exists: its process and prediction, its conditions.

    With a prior also the loss of pictures of the class, so that the model keeps it (Ruiz et al.
    2022, eq. 2).
    """

    config: ExistingModelConfig

    def __init__(
        self,
        config: ExistingModelConfig,
        out: Path,
        resumed: TrainingCheckpoint | None,
        observe: Observe,
        *,
        model: LatentDiffusion,
        modules: Mapping[str, nn.Module],
        text_is_finished: bool,
        prompts: Sequence[str] = (),
        inputs: Mapping[str, str] | None = None,
        maps: Sequence[str] = (),
    ) -> None:
        """modules: all that is trained; text_is_finished: whether they leave the text as it is.

        prompts: in place of the recipe's prompt and captions; inputs: further digests; maps:
        columns in which every picture has to have a map; the rest as `TrainingConfig.task`.
        """
        whole_pictures(config)
        self.config = config  # of `conditions_of`
        prompts = prompts or tuple(filter(None, [config.prompt]))
        own_captions = bool(model.texts) and not prompts
        multiple = model.downsampling_factor * model.unet.config.side_multiple
        data = TrainingData(
            config.data,
            config.seed,
            config.captions.fields if own_captions else (),
            buckets=BucketRule(multiple, config.run.batch),
            maps=maps,
        )
        notes = data.notes
        inputs = {"model": model.hash, "first_stage": model.hash, **(inputs or {})}
        if config.first_stage is not None:
            inputs["first_stage"] = content_digest(standalone_vae.files(config.first_stage))
        text = None
        if model.texts:
            text = self._captions(config, data, model, prompts, resumed, finished=text_is_finished)
            notes += text.notes
        prior_data = None
        if config.prior:
            prior_data = class_pictures(config.prior, config.data, model, out, observe)
            inputs["prior"] = prior_data.inputs["data"]
        super().__init__(
            config,
            out,
            resumed,
            observe,
            model=model,
            modules=modules,
            data=data,
            text=text,
            conditions=self.conditions_of(data, model),
            levels=config.diffusion.levels(model.process),
            inputs=inputs,
            notes=notes,
        )
        if config.first_stage and isinstance(self.latents, LatentCache) and not resumed:
            latents, place = self.latents.checked, config.first_stage
            self.notes += unusual_deviation(model.autoencoder, latents, place)
        self.prior: Samples | None = None
        if config.prior and prior_data:
            words = (config.prior.prompt,)
            self.prior = Samples(
                self._encoded(prior_data, out / "prior", resumed, observe),
                self._captions(config, prior_data, model, words, None, finished=text_is_finished),
                self.conditions_of(prior_data, model),
            )
            self._prior_order = prior_data.order

    def _captions(
        self,
        config: ExistingModelConfig,
        data: TrainingData,
        model: LatentDiffusion,
        prompts: Sequence[str],
        resumed: TrainingCheckpoint | None,
        *,
        finished: bool,
    ) -> Captions:
        return Captions(
            config.captions,
            data,
            lambda _: model.texts[0].tokenizer,
            finished=model.texts if finished else (),
            prompts=prompts,
            required=resumed is None,
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The loss, with a prior also that of class pictures, times its weight."""
        found = super().losses(batch)
        if self.prior and self.config.prior and self.modules.training:
            own = found["loss"]
            others = prior_batch(self._prior_order, batch, self.order)
            prior = self.loss_of(self.prior, others).mean()
            found = {
                "loss": own + self.config.prior.weight * prior,
                "instance": own,
                "prior": prior,
            }
        return found

    def conditions_of(self, data: TrainingData, model: LatentDiffusion) -> list[TrainingCondition]:
        """The conditions that the model takes beside text."""
        found = list[TrainingCondition]()
        if self.config.labels:
            found.append(LabelCondition(self.config.labels, data))
        if model.low_res_process is not None:
            most = LowResolutionConfig(max_noise_level=model.max_noise_level)
            found.append(LowResolutionCondition(most, data, model))
        elif model.extra_channels:
            found.append(InpaintingCondition(InpaintingConfig(), data, model))
        return found

    @property
    def captions(self) -> tuple[str, ...]:
        """The prompts of the preview's images: the recipe's, else a caption of the data."""
        if self.conditions or not self.text:
            return ()
        return self.config.previews or (self.text.example,)


def chosen_networks(model: LatentDiffusion, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """Networks of a model by the names of the key `train`; the denoiser without names.

    Raises UndustError for a name that the model does not have.
    """
    denoiser = type_of(model.unet).folder
    known: dict[str, nn.Module] = {denoiser: model.unet}
    known |= {text.name: text.encoder for text in model.texts}
    names = names or (denoiser,)
    for name in names:
        if name in ("vae", "vqvae", "first_stage"):
            raise UndustError(
                f'train: {name} is trained by a recipe of kind "first-stage", with init'
            )
        if name not in known:
            raise UndustError(f"train: {unknown('network of the model', name, known)}")
    return {name: known[name] for name in names}
