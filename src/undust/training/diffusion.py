"""Training the denoiser: a U-Net and its text encoder, together, on latents encoded once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Literal, Self

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from undust.conditioning import tokenizer as tokenizers
from undust.conditioning.prompt import escape
from undust.conditioning.text import TextConditioner
from undust.conditioning.tokenizer import Tokenizer
from undust.diffusion.process import Process
from undust.diffusion.weighting import WEIGHTINGS
from undust.errors import UndustError
from undust.formats import standalone_vae, tokenizer_files
from undust.generation import loop
from undust.latent.conditioner import ConditionInputs
from undust.networks.config import TextEncoderConfig, UNetConfig
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet
from undust.pictures import grid
from undust.pipeline import LatentDiffusion
from undust.training.caches import LatentCache
from undust.training.captions import CaptionSampler, CaptionsConfig, check_captions, too_long
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.configs import OptimizerConfig, Place
from undust.training.data import Batch, Observe, RandomStream
from undust.training.derived import check_text_encoder, derived_unet, first_stage_at
from undust.training.noise_levels import AnyNoiseConfig, BetaNoiseConfig
from undust.training.resume import compare_inputs
from undust.training.sources import TrainingData, content_digest
from undust.training.task import TrainingConfig


class DiffusionConfig(TrainingConfig):
    """Trains U-Net and text encoder together on the latents of a trained first stage."""

    kind: Literal["diffusion"] = Field(description="what is trained")
    first_stage: Place = Field(
        description="the trained autoencoder: its folder, that of its run or of a model, a file, "
        "or a model's name"
    )
    captions: CaptionsConfig = CaptionsConfig()
    diffusion: AnyNoiseConfig = BetaNoiseConfig()
    unet: UNetConfig
    text_encoder: TextEncoderConfig
    previews: tuple[str, ...] = Field(default=(), description="prompts of the previews")

    def complete(self) -> Self:
        """With the first stage's place, and the U-Net's sizes where they are left out.

        Raises UndustError for a first stage that is not found, and for sizes that contradict each
        other.
        """
        place, captions = first_stage_at(self.first_stage), self.captions
        check_text_encoder(self.text_encoder, captions.vocabulary, captions.length)
        unet = derived_unet(self.unet, place, self.data.size, self.text_encoder.hidden_size)
        return self.model_copy(update={"first_stage": place, "unet": unet})

    def task(
        self, out: Path, resumed: TrainingCheckpoint | None, observe: Observe
    ) -> DiffusionTask:
        """The training of U-Net and text encoder."""
        return DiffusionTask(self, out, resumed, observe)

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        if self.unet.addition_embed_type == "text_time" or self.unet.num_class_embeds is not None:
            name = "num_class_embeds" if self.unet.num_class_embeds else "addition_embed_type"
            raise ValueError(f"unet.{name}: a U-Net is trained here on text alone; leave it out")
        if self.text_encoder.projects:
            raise ValueError("text_encoder.architectures has to be left out: CLIPTextModel")
        return self


class DiffusionTask:
    """The published objective (Rombach et al. 2022, eq. 3) on latents z = E(picture).

    Noise of a random level is added to a latent; the loss is the squared error of the network's
    output against its target, weighted by noise level (seed 001, eq. 3).
    """

    def __init__(
        self,
        config: DiffusionConfig,
        out: Path,
        resumed: TrainingCheckpoint | None = None,
        observe: Observe = lambda _done, _all: None,
    ) -> None:
        """As `TrainingConfig.task`. observe: called while images are encoded as latents."""
        self.config = config
        data, captions, diffusion = config.data, config.captions, config.diffusion
        if data.crop is not None:
            raise UndustError("data.crop: latents are made of whole pictures; leave it out")
        process, self.noise_levels = diffusion.build()
        self.weighting = WEIGHTINGS[diffusion.weighting]
        self.data = TrainingData(data, config.seed, captions.fields)
        samples, self.notes = self.data.training_samples, self.data.notes
        self.notes += check_captions(captions, samples, required=resumed is None)
        self.inputs = {
            **self.data.inputs,
            "first_stage": content_digest(standalone_vae.files(config.first_stage)),
        }
        self.notes += compare_inputs(resumed, self.inputs, out) if resumed else []
        self.caption_sampler = CaptionSampler(
            captions, [sample.captions for sample in self.data.samples]
        )
        if resumed:
            tokenizer = _tokenizer(resumed, out)
        else:
            texts = self.caption_sampler.all_texts(self.data.train)
            tokenizer = tokenizers.train(texts, captions.vocabulary, captions.length)
        self.notes += too_long(captions, samples, tokenizer)
        self.model = _new_model(config, tokenizer, process)
        # Unchecked: the loop stops at the first loss that is not finite.
        self.denoise = replace(self.model.denoise, network=self.model.unet)
        [self.text] = self.model.texts
        self.model.latent_shape(data.size, data.size)
        self.modules = nn.ModuleDict({"unet": self.model.unet, "text_encoder": self.text.encoder})
        self.optimizers: dict[str, OptimizerConfig] = {}
        self.order, self.validation = self.data.order, self.data.validation
        self.latents = LatentCache(
            self.model.first_stage,
            self.data,
            data.size,
            out,
            {"first_stage": self.inputs["first_stage"], "size": data.size},
            observe,
            resumed=resumed is not None,
        )
        self.notes += self.latents.notes

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted squared error of the network's output, a mean over the batch."""
        shape = self.latents.shape
        z = self.latents.sample(batch.sample, batch.normal(RandomStream.POSTERIOR, shape))
        noise = batch.normal(RandomStream.NOISE, shape)
        sigma = self.noise_levels(batch.uniform(RandomStream.TIME)[:, 0])
        cond = self.model.conditioner(ConditionInputs(self._captions(batch), captions=True))
        return {"loss": self.denoise.loss(z, noise, sigma, cond, self.weighting).mean()}

    def diagnoses(self, step: int, means: Mapping[str, float]) -> dict[str, str]:  # noqa: ARG002
        """None yet."""
        return {}

    @property
    def captions(self) -> tuple[str, ...]:
        """The prompts of the preview's images."""
        return self.config.previews or ("",)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text encoder."""
        return self.text.tokenizer

    def preview(self, *, brief: bool = False) -> Image.Image:
        """Images of the recipe's prompts with constant seeds; brief: one image, in one step."""
        steps = 1 if brief else 20
        recipes = self.model.recipes([*map(escape, self.captions)], seed=0, steps=steps)
        recipes = recipes[: 1 if brief else None]
        *_, last = loop.sample_batch(self.model, recipes)
        return grid([picture.image for picture in loop.decode(recipes, last)])

    def publish(self, folder: Path, *, brief: bool = False) -> None:  # noqa: ARG002
        """Writes the whole model as a diffusers folder."""
        self.model.save(folder)

    def next_steps(self, model: Path, data: Path) -> str:  # noqa: ARG002
        """A command that generates an image from a caption of the data."""
        captions = self.caption_sampler.all_texts(self.data.train)
        example = next((escape(caption) for caption in captions if caption.strip()), "")
        return (
            f"generate with it: undust generate {quote(example)} --model {quote(str(model))}; "
            "diffusers opens it as StableDiffusionPipeline"
        )

    def _captions(self, batch: Batch) -> list[str | None]:
        """A caption of each sample, or None for the unconditional input of guidance.

        (Ho & Salimans 2022, algorithm 1.)
        """
        chances = batch.uniform(RandomStream.CAPTION, self.caption_sampler.num_chances).tolist()
        dropped = (batch.uniform(RandomStream.DROP)[:, 0] < self.config.captions.drop).tolist()
        return [
            None if drop else self.caption_sampler(sample, chance)
            for sample, chance, drop in zip(batch.sample, chances, dropped, strict=True)
        ]


def _new_model(config: DiffusionConfig, tokenizer: Tokenizer, process: Process) -> LatentDiffusion:
    """A trained first stage with a new U-Net, whose output is zero, and a new text encoder."""
    vocabulary = tokenizer.vocabulary
    ends = {
        "vocab_size": len(vocabulary),
        "max_position_embeddings": config.captions.length,
        "bos_token_id": vocabulary[tokenizers.START],
        "eos_token_id": vocabulary[tokenizers.END],
        "pad_token_id": vocabulary[tokenizers.END],
    }
    torch.manual_seed(config.seed)
    unet = UNet(config.unet)
    unet.start_at_zero()
    return LatentDiffusion(
        standalone_vae.load(config.first_stage),
        unet,
        (TextConditioner(tokenizer, TextEncoder(config.text_encoder.model_copy(update=ends))),),
        process,
        config.diffusion.prediction,
    )


def _tokenizer(resumed: TrainingCheckpoint, out: Path) -> Tokenizer:
    """The tokenizer of the run that is resumed."""
    if resumed.tokenizer:
        return resumed.tokenizer
    folder = out / "model" / "tokenizer"
    if not folder.is_dir():
        raise UndustError(
            f"the checkpoint of step {resumed.step} is of an earlier version, which kept the "
            f"tokenizer in {folder} alone, and that is gone: put it back"
        )
    return tokenizer_files.load(folder)
