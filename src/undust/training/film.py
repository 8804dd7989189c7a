"""Training a model of films, which continue a given picture (Blattmann et al. 2023b)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import Literal, Self

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from undust.diffusion.time_sampling import lognormal
from undust.errors import UndustError
from undust.evaluation.figure import Figure
from undust.evaluation.networks import FigureNetworks
from undust.formats import standalone_vae
from undust.formats.video_folder import write_video_folder
from undust.generation.animation import decode_film, sample_film
from undust.latent.video import unconditional
from undust.networks.conditioning import Conditioning
from undust.pictures import grid, to_images
from undust.training.caches import ImageCache, LatentCache
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.configs import OptimizerConfig
from undust.training.data import Batch, Observe, RandomStream, SampleOrder
from undust.training.figures import FiguresConfig
from undust.training.film_model import FilmModelConfig
from undust.training.latent_statistics import unusual_deviation
from undust.training.resume import compare_inputs
from undust.training.sources import VALIDATION_SEED, FilmSource, TrainingData, content_digest
from undust.training.views import View

PREVIEWS = 4  # films
PREVIEW_STEPS = 20


class FilmConfig(FilmModelConfig):
    """Trains a model of films on films: folders of frames, animated pictures, or videos."""

    kind: Literal["film"] = Field(description="what is trained")
    drop: float = Field(
        default=0.1, ge=0, le=1, description="share of films trained without their first frame"
    )
    augmentation_mean: float = Field(
        default=-3.0, ge=-20, le=20, description="mean of the log of the first frame's noise level"
    )
    augmentation_std: float = Field(
        default=0.5, ge=0, le=20, description="standard deviation of the same"
    )

    def task(self, out: Path, resumed: TrainingCheckpoint | None, observe: Observe) -> FilmTask:
        """The training of the U-Net, and of the image encoder if it is new."""
        return FilmTask(self, out, resumed, observe)

    @model_validator(mode="after")
    def _of_films(self) -> Self:
        data = self.data
        if data.source not in ("folder", "films"):
            raise ValueError(f"data.source: films are read from a folder, not {data.source}")
        if data.buckets or data.crop is not None or data.crops > 1:
            raise ValueError("data.buckets, crop and crops are not for films; leave them out")
        if data.draw_by != "picture":
            raise ValueError("data.draw_by: a film is drawn each time; leave it out")
        if self.figures.every:
            raise ValueError("figures.every: figures of films are not measured; leave it out")
        return self


class FilmTask:
    """The objective of Stable Video Diffusion: EDM's, on the latents of all frames together.

    The condition is the first frame: its embedding, and its latent under a little noise beside that
    of each frame; both are zero for some films, for guidance.
    """

    tokenizer = None
    captions = ()

    def __init__(
        self,
        config: FilmConfig,
        out: Path,
        resumed: TrainingCheckpoint | None = None,
        observe: Observe = lambda _done, _all: None,
    ) -> None:
        """As `TrainingConfig.task`. observe: called while frames are encoded as latents."""
        self.config, self.size = config, (config.data.size, config.data.size)
        self.model = model = config.new_model()
        model.latent_shape(*self.size)
        self.data = TrainingData(config.data.model_copy(update={"source": "films"}), config.seed)
        source = self.data.source
        assert isinstance(source, FilmSource)
        self.frames = source.frames
        train, held_out = self._starts(self.data.train), self._starts(self.data.held_out)
        self.notes = [*self.data.notes, *self._short(train)]
        self.order = SampleOrder(train, config.seed)
        firsts = [[starts[0]] for starts in held_out]
        self.validation = SampleOrder(firsts, VALIDATION_SEED) if firsts else None
        self.inputs = {**self.data.inputs, "motion": self._digest(), **self._weights()}
        self.notes += compare_inputs(resumed, self.inputs, out) if resumed else []
        self.noise_levels, self.weighting = config.diffusion.levels(model.process)
        self.modules = nn.ModuleDict({"unet": model.unet})
        if config.image_encoder is not None:
            self.modules["image_encoder"] = model.image_encoder
        self.modules.requires_grad_(True).train()
        self.networks = nn.ModuleDict(model.networks)
        self.optimizers: dict[str, OptimizerConfig] = {}
        # Unchecked: the loop stops at the first loss that is not finite.
        self.denoise = replace(model.denoise, network=model.unet)
        made_of = {"first_stage": self.inputs["first_stage"], "size": self.size[0]}
        again = resumed is not None
        self.latents = LatentCache(
            model.first_stage, self.data, out, made_of, observe, resumed=again
        )
        self.images = ImageCache(source)
        self.notes += self.latents.notes
        if not resumed:
            place = config.model or config.first_stage
            assert place
            self.notes += unusual_deviation(model.autoencoder, self.latents.checked, place)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The squared error of the network's output, a mean over films."""
        flips = self._flips(batch)
        views = [
            self._view(first + frame, flip=flip)
            for first, flip in zip(batch.sample, flips, strict=True)
            for frame in range(self.config.frames)
        ]
        posterior = self.latents.posterior(views)
        shape = self.config.frames, *posterior.mean.shape[1:]
        drawn = batch.normal(RandomStream.POSTERIOR, shape).flatten(0, 1)
        z = posterior.sample(drawn).unflatten(0, (len(batch), self.config.frames))
        noise = batch.normal(RandomStream.NOISE, shape)
        sigma = self.noise_levels(batch.uniform(RandomStream.TIME)[:, 0])
        cond = self._condition(batch, flips)
        return {"loss": self.denoise.loss(z, noise, sigma, cond, self.weighting).mean()}

    def diagnoses(self, step: int, means: Mapping[str, float]) -> dict[str, str]:  # noqa: ARG002
        """None yet."""
        return {}

    def preview(self, *, brief: bool = False) -> Image.Image:
        """Films of the data, a row each, above those made from their first frames."""
        groups = self.order.groups
        shown = groups[:: max(1, len(groups) // PREVIEWS)][: 1 if brief else PREVIEWS]
        rows: list[Image.Image] = []
        for seed, (first, *_) in enumerate(shown):
            frame = self.frames[first]
            views = [self._view(first + k) for k in range(self.config.frames)]
            real = to_images(self.images(views))
            recipe = self.model.recipe(
                real[0],
                frames=self.config.frames,
                size=self.size,
                fps=frame.fps,
                motion=frame.motion,
                steps=1 if brief else PREVIEW_STEPS,
                seed=seed,
            )
            *_, last = sample_film(self.model, recipe)
            rows += [*real, *decode_film(recipe, last).frames]
        return grid(rows, self.config.frames)

    def publish(self, folder: Path, *, brief: bool = False) -> None:  # noqa: ARG002
        """Writes the whole model as a diffusers folder."""
        write_video_folder(self.model, folder)

    def figures(
        self,
        config: FiguresConfig,  # noqa: ARG002
        networks: FigureNetworks,  # noqa: ARG002
    ) -> Callable[[], list[Figure]]:
        """Raises UndustError: there are none, and the recipe asks for none."""
        raise UndustError("figures of films are not measured")

    def next_steps(self, model: Path, data: Path) -> str:  # noqa: ARG002
        """A command that animates a picture."""
        command = f"undust animate PICTURE --model {quote(str(model))}"
        return f"animate a picture: {command}; diffusers opens it as StableVideoDiffusionPipeline"

    def _condition(self, batch: Batch, flips: Sequence[bool]) -> Conditioning:
        """The condition of each film, nothing where it is dropped."""
        config, firsts = self.config, [*zip(batch.sample, flips, strict=True)]
        pictures = self.images([self._view(first, flip=flip) for first, flip in firsts])
        chances = batch.uniform(RandomStream.AUGMENTATION)[:, 0]
        level = lognormal(chances, config.augmentation_mean, config.augmentation_std)
        told = [
            (frame.fps - 1, frame.motion) for frame in map(self.frames.__getitem__, batch.sample)
        ]
        numbers = torch.cat([torch.tensor(told).double(), level[:, None]], 1).float()
        noise = batch.normal(RandomStream.AUGMENTATION_NOISE, pictures.shape[1:])
        cond = self.model.condition(pictures, noise, numbers, config.frames)
        dropped = batch.uniform(RandomStream.DROP)[:, 0] < config.drop
        return _chosen(dropped, unconditional(cond), cond)

    def _view(self, frame: int, *, flip: bool = False) -> View:
        return View(frame, self.size, flip=flip)

    def _flips(self, batch: Batch) -> list[bool]:
        """Whether each film is mirrored."""
        if not (self.config.data.flip and self.modules.training):
            return [False] * len(batch)
        return (batch.uniform(RandomStream.VIEW)[:, 0] < 0.5).tolist()

    def _starts(self, indices: Sequence[int]) -> list[list[int]]:
        """Of each film that has any, the frames that enough others of these indices follow."""
        films: dict[Path, list[int]] = {}
        for index in indices:
            films.setdefault(self.frames[index].film, []).append(index)
        count = self.config.frames - 1
        starts = (
            [first for first, last in zip(own, own[count:], strict=False) if last == first + count]
            for own in films.values()
        )
        return [own for own in starts if own]

    def _short(self, starts: Sequence[Sequence[int]]) -> list[str]:
        """A line on films that are too short. Raises UndustError if all are."""
        films, frames = (
            len({self.frames[index].film for index in self.data.train}),
            self.config.frames,
        )
        if not starts:
            raise UndustError(
                f"{self.config.data.folder}: none of {films} films has {frames} frames, as the "
                "recipe's key frames says; a film is an animated picture, a video or a folder of "
                "frames"
            )
        short = films - len(starts)
        return [f"shorter than {frames} frames, not trained on: {short} of {films} films"] * bool(
            short
        )

    def _digest(self) -> str:
        """A hash of what the model is told of the films."""
        told = [(self.frames[k].fps, self.frames[k].motion) for k in self.data.train]
        return sha256(repr(told).encode()).hexdigest()

    def _weights(self) -> dict[str, str]:
        """Digests of the weights that the run begins with."""
        if self.config.model is not None:
            return {"model": self.model.hash, "first_stage": self.model.hash}
        assert self.config.first_stage
        found = {"first_stage": content_digest(standalone_vae.files(self.config.first_stage))}
        if self.config.image_encoder_from is not None:
            files = sorted(self.config.image_encoder_from.glob("*.safetensors"))
            found["image_encoder"] = content_digest(files)
        return found


def _chosen(which: Tensor, yes: Conditioning, no: Conditioning) -> Conditioning:
    """The entries of one condition where `which` [B], else of the other."""
    others = no.tensors()
    fields = {
        name: value.where(which.to(value.device).reshape(-1, *[1] * (value.ndim - 1)), others[name])
        for name, value in yes.tensors().items()
    }
    return replace(no, **fields)
