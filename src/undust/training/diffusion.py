"""Training the denoiser: a U-Net and its text encoder, together, on latents made once."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from undust.conditioning import tokenizer as tokenizers
from undust.conditioning.prompt import escape
from undust.conditioning.text import TextConditioner
from undust.conditioning.tokenizer import Tokenizer
from undust.diffusion.denoiser import NetworkDenoiser
from undust.diffusion.prediction import prediction_on
from undust.diffusion.weighting import WEIGHTINGS
from undust.errors import UndustError
from undust.formats import standalone_vae, tokenizer_files
from undust.generation import loop
from undust.model import LatentDiffusion
from undust.networks.conditioning import Conditioning
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet
from undust.pictures import grid
from undust.training.captions import CaptionSampler, check_captions, too_long
from undust.training.checkpoints import Checkpoint
from undust.training.configs import DiffusionConfig
from undust.training.data import (
    Batch,
    ImageCache,
    RandomStream,
    SampleOrder,
    content_digest,
    digest,
    groups,
    training_samples,
)
from undust.training.latents import LatentCache, Observe
from undust.training.noise_levels import forward
from undust.training.resume import compare_inputs


class DiffusionTask:
    """The published objective (Rombach et al. 2022, eq. 3) on latents z = E(picture).

    A latent gets dust of a random level; the network tells what `prediction` asks for; the squared
    error, weighted by level (seed 001, eq. 3), is the loss.
    """

    def __init__(
        self,
        recipe: DiffusionConfig,
        out: Path,
        resumed: Checkpoint | None = None,
        observe: Observe = lambda _done, _all: None,
    ) -> None:
        """A run in the folder `out`, which goes on from `resumed` if that is given.

        observe: told how many pictures of all are encoded as latents.
        """
        self.recipe = recipe
        data, captions, dust = recipe.data, recipe.captions, recipe.dust
        if data.crop is not None:
            raise UndustError("data.crop: latents are made of whole pictures; leave it out")
        process, self.levels = forward(dust)
        self.weighting = WEIGHTINGS[dust.weighting]
        samples, self.notes = training_samples(data)
        self.notes += check_captions(captions, samples, required=resumed is None)
        self.inputs = {
            "data": digest(samples, captions.fields),
            "first_stage": content_digest(standalone_vae.files(recipe.first_stage)),
        }
        self.notes += compare_inputs(resumed, self.inputs, out) if resumed else []
        self.caption_sampler = CaptionSampler(captions, [sample.captions for sample in samples])
        tokenizer = (
            _tokenizer(resumed, out)
            if resumed
            else tokenizers.train(
                self.caption_sampler.every(), captions.vocabulary, captions.length
            )
        )
        self.notes += too_long(captions, samples, tokenizer)
        ends = {
            "vocab_size": len(tokenizer.vocabulary),
            "max_position_embeddings": captions.length,
            "bos_token_id": tokenizer.vocabulary[tokenizers.START],
            "eos_token_id": tokenizer.vocabulary[tokenizers.END],
            "pad_token_id": tokenizer.vocabulary[tokenizers.END],
        }
        torch.manual_seed(recipe.seed)
        unet = UNet(recipe.unet)
        unet.start_at_zero()
        self.denoiser: NetworkDenoiser[Conditioning] = NetworkDenoiser(
            unet, process, prediction_on(process, dust.prediction)
        )
        self.model = LatentDiffusion(
            standalone_vae.load(recipe.first_stage),
            unet,
            (TextConditioner(tokenizer, TextEncoder(recipe.text_encoder.model_copy(update=ends))),),
            process,
            dust.prediction,
        )
        [self.words] = self.model.texts
        self.model.latent_shape(data.size, data.size)
        self.modules = nn.ModuleDict({"unet": self.model.unet, "text_encoder": self.words.encoder})
        self.order = SampleOrder(groups(samples, data.draw_by), recipe.seed)
        self.latents = LatentCache(
            self.model.first_stage,
            ImageCache([sample.path for sample in samples], data.size, memory=0),
            out / "latents.safetensors",
            {
                "first_stage": self.inputs["first_stage"],
                "size": data.size,
                "pictures": content_digest(sample.path for sample in samples),
            },
            observe,
            resumed=resumed is not None,
        )
        if self.latents.note:
            self.notes.append(self.latents.note)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted squared error of the network's output, a mean over the batch."""
        shape = self.latents.shape
        z = self.latents.sample(batch.sample, batch.normal(RandomStream.POSTERIOR, shape))
        noise = batch.normal(RandomStream.NOISE, shape)
        sigma = self.levels(batch.uniform(RandomStream.TIME)[:, 0])
        cond = self.model.conditioner.captions(self._captions(batch))
        return {"loss": self.denoiser.loss(z, noise, sigma, cond, self.weighting).mean()}

    @property
    def captions(self) -> tuple[str, ...]:
        """The prompts of the preview's pictures."""
        return self.recipe.previews or ("",)

    @property
    def tokenizer(self) -> Tokenizer:
        """The one that the weights learn with."""
        return self.words.tokenizer

    @property
    def example(self) -> str:
        """A caption of the data, as a prompt that the model was trained on."""
        return next(
            (escape(caption) for caption in self.caption_sampler.every() if caption.strip()), ""
        )

    def preview(self, *, brief: bool = False) -> Image.Image:
        """The recipe's prompts, painted with seeds that never change; brief: one, in one step."""
        steps = 1 if brief else 20
        recipes = self.model.recipes([*map(escape, self.captions)], seed=0, steps=steps)
        recipes = recipes[: 1 if brief else None]
        *_, last = loop.sample_batch(self.model, recipes)
        return grid([picture.image for picture in loop.decode(recipes, last)])

    def publish(self, folder: Path, *, brief: bool = False) -> None:  # noqa: ARG002
        """Writes the whole model as a diffusers folder."""
        self.model.save(folder)

    def _captions(self, batch: Batch) -> list[str | None]:
        """A caption of each sample, or None: the unconditional input of guidance.

        (Ho & Salimans 2022, algorithm 1.)
        """
        chances = batch.uniform(RandomStream.CAPTION, self.caption_sampler.chances).tolist()
        dropped = (batch.uniform(RandomStream.DROP)[:, 0] < self.recipe.captions.drop).tolist()
        return [
            None if drop else self.caption_sampler(sample, chance)
            for sample, chance, drop in zip(batch.sample, chances, dropped, strict=True)
        ]


def _tokenizer(resumed: Checkpoint, out: Path) -> Tokenizer:
    """The tokenizer that the weights learnt with."""
    if resumed.tokenizer:
        return resumed.tokenizer
    folder = out / "model" / "tokenizer"
    if not folder.is_dir():
        raise UndustError(
            f"the checkpoint of step {resumed.step} is of an earlier version, which kept the "
            f"tokenizer in {folder} alone, and that is gone: put it back"
        )
    return tokenizer_files.load(folder)
