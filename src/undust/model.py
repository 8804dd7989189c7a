"""A latent diffusion model: first stage, denoiser and text encoder, loaded, used and saved."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from undust import __version__
from undust.conditioning.condition import Conditioning
from undust.conditioning.tokenizer import Tokenizer
from undust.diffusion.denoiser import NetworkDenoiser
from undust.diffusion.prediction import prediction_on
from undust.diffusion.process import Process
from undust.errors import UndustError, unknown
from undust.formats import tokenizer_files
from undust.formats.files import atomic_folder
from undust.formats.folder import INDEX, read_json, read_model_index, save_component, write_json
from undust.formats.networks import load_autoencoder, load_network
from undust.formats.original.model import load as load_single_file
from undust.formats.safetensors_file import content_hash
from undust.formats.scheduler import read_scheduler, scheduler_config
from undust.generation import loop
from undust.generation.guides import Guide, read_guide
from undust.generation.loop import Picture, Step
from undust.generation.recipe import SEEDS, Recipe
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import TextEncoderConfig, UNetConfig
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet

BUILT_IN = Path(__file__).parent / "models"
PARTS = {
    "vae": "AutoencoderKL",
    "unet": "UNet2DConditionModel",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}


@dataclass
class LatentDiffusion:
    """The parts of a model that go together; what `undust.load` gives."""

    autoencoder: Autoencoder
    unet: UNet
    text_encoder: TextEncoder
    tokenizer: Tokenizer
    process: Process
    prediction: str
    name: str = ""
    hash: str = ""

    def __post_init__(self) -> None:
        widths = {
            "the text encoder's hidden_size": self.text_encoder.config.hidden_size,
            "the U-Net's cross_attention_dim": self.unet.config.cross_attention_dim,
        }
        if len(set(widths.values())) > 1:
            stated = " and ".join(f"{name} is {width}" for name, width in widths.items())
            raise UndustError(f"the parts do not fit: {stated}")
        self._others: dict[str, LatentDiffusion] = {}
        self._denoiser = NetworkDenoiser(
            self._network, self.process, prediction_on(self.process, self.prediction)
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures that the model was trained on, pixels."""
        sample = self.unet.config.sample_size or 64
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return width * self.autoencoder.factor, height * self.autoencoder.factor

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of a picture; UndustError if the size is not divisible."""
        factor = self.autoencoder.factor
        if width % factor or height % factor or min(width, height) < factor:
            fits = "x".join(str(max(1, round(side / factor)) * factor) for side in (width, height))
            raise UndustError(
                f"size: {width}x{height} is not divisible by {factor}; {fits} would be"
            )
        return (self.autoencoder.config.latent_channels, height // factor, width // factor)

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """The prompts, tokenized and encoded: text [B, T, D]."""
        return Conditioning(self.text_encoder(self.tokenizer(prompts).to(self._like.device)))

    def denoise(self, x: Tensor, sigma: Tensor, cond: Conditioning, /) -> Tensor:
        """The clean latents [B, C, h, w] under x = x0 + σ·n, given σ [B]."""
        return self._denoiser(x, sigma, cond)

    def another(self, name_or_path: str, /) -> LatentDiffusion:
        """Another model in this one's precision and place, loaded once."""
        if name_or_path not in self._others:
            self._others[name_or_path] = load(
                name_or_path, dtype=self._like.dtype, device=self._like.device
            )
        return self._others[name_or_path]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] → pictures [B, 3, H, W], about in [-1, 1]."""
        config = self.autoencoder.config
        unscaled = latents / config.scaling_factor + (config.shift_factor or 0.0)
        return self.autoencoder.decode(unscaled.to(self._like)).float()

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] → the means of their latents [B, C, h, w]."""
        config = self.autoencoder.config
        mean = self.autoencoder.encode(pictures.to(self._like)).mean.float()
        return (mean - (config.shift_factor or 0.0)) * config.scaling_factor

    def _network(self, x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        like = self._like
        return self.unet(x.to(like), timestep.to(like.device), cond.text, cond.perturbed).to(x)

    @property
    def _like(self) -> Tensor:
        """A weight whose precision and device the networks' inputs take."""
        return self.unet.conv_in.weight

    def recipes(
        self,
        prompts: str | Sequence[str],
        *,
        negative: str = "",
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        schedule: str | None = None,
        guides: Sequence[str | Mapping[str, Any] | Guide] = (),
        seed: int | None = None,
        size: tuple[int, int] | int | None = None,
        count: int = 1,
    ) -> list[Recipe]:
        """A recipe for each picture: every prompt with the seeds `seed` … `seed + count − 1`.

        What is None takes its default: the recipe's, a random seed, the size trained on, the
        process's schedule. guides: "apg:eta=0,norm=10" or such, see `undust guidances`; their files
        are read here.
        Raises UndustError for no prompts, and for any value that cannot be.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise UndustError("no prompt: say what to paint, such as 'a smiling cat'")
        if count < 1:
            raise UndustError(f"count: has to be at least 1, not {count}")
        seed = random.SystemRandom().randrange(2**32) if seed is None else seed
        width, height = (size, size) if isinstance(size, int) else size or self.size
        self.latent_shape(width, height)
        guides = [guides] if isinstance(guides, str) else guides
        settled = [read_guide(guide).settle(self, (width, height)) for guide in guides]
        asked = {
            "steps": steps,
            "guidance": guidance,
            "sampler": sampler,
            "schedule": self.process.default_schedule if schedule is None else schedule,
        }
        chosen = {name: value for name, value in asked.items() if value is not None}
        return [
            Recipe.read(
                {
                    **chosen,
                    "guides": settled,
                    "prompt": prompt,
                    "negative": negative,
                    "seed": (seed + k) % SEEDS if 0 <= seed < SEEDS else seed,
                    "width": width,
                    "height": height,
                    "model": self.name,
                    "model_hash": self.hash,
                    "undust": __version__,
                }
            )
            for prompt in prompts
            for k in range(count)
        ]

    def steps(
        self,
        prompts: str | Sequence[str],
        *,
        noise: Tensor | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Step]:
        """Paints as `generate` does, all pictures in one batch, and yields every step of it."""
        return loop.paint(self, self._batch(self.recipes(prompts, **options), noise), noise)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        noise: Tensor | None = None,
        exact: bool = False,
        **options: Unpack[Options],
    ) -> list[Picture]:
        """Paints a picture for each prompt and each of `count` seeds; the options are `recipes`'s.

        noise: unit-variance start [C, h, w] or [B, C, h, w] instead of one drawn from the seeds;
        exact: paint every picture by itself, to the byte as it would be alone.
        Raises UndustError for what cannot be painted.
        """
        recipes = self.recipes(prompts, **options)
        if noise is not None:
            batch = self._batch(recipes, noise)
            return loop.finish(batch, _last(loop.paint(self, batch, noise)))
        return [
            picture
            for batch in loop.batches(recipes, exact=exact)
            for picture in loop.finish(batch, _last(loop.paint(self, batch)))
        ]

    def rerun(self, recipe: Recipe) -> Picture:
        """The picture of a recipe again, to the byte; errors as for `rerun_batch`."""
        batch = self.rerun_batch(recipe)
        return loop.finish(batch, _last(loop.paint(self, batch)))[recipe.place]

    def rerun_batch(self, recipe: Recipe) -> list[Recipe]:
        """What to paint to get a picture again. Raises UndustError if it is of another model."""
        batch = loop.rerun_batch(recipe)
        if recipe.model_hash != self.hash:
            raise UndustError(
                f"the picture was made with another model: {recipe.model} ({recipe.model_hash}), "
                f"not {self.name} ({self.hash})"
            )
        return batch

    def save(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Writes the model as a diffusers folder, replacing a model that is there, or none of it.

        dtype: of the weights in the files; None keeps each as it is. Raises UndustError, and leaves
        the folder alone, if it holds anything but a model.
        """
        folder = Path(folder)
        model_there = (folder / INDEX).is_file()
        networks = {
            "vae": (self.autoencoder, "AutoencoderKL"),
            "unet": (self.unet, "UNet2DConditionModel"),
            "text_encoder": (self.text_encoder, "CLIPTextModel"),
        }
        index = {
            "_class_name": "StableDiffusionPipeline",
            "vae": ["diffusers", "AutoencoderKL"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
        }
        with atomic_folder(folder, replace=model_there) as building:
            for name, (network, kind) in networks.items():
                save_component(building / name, network, kind, dtype)
            tokenizer_files.save(building / "tokenizer", self.tokenizer)
            (building / "scheduler").mkdir()
            scheduler = scheduler_config(self.process, self.prediction)
            write_json(building / "scheduler" / "scheduler_config.json", scheduler)
            index["scheduler"] = ["diffusers", scheduler["_class_name"]]
            write_json(building / "model_index.json", index)

    def _batch(self, recipes: list[Recipe], noise: Tensor | None) -> list[Recipe]:
        given = {"batch": len(recipes), "given_noise": noise is not None}
        return [
            Recipe.read({**recipe.model_dump(), **given, "place": k})
            for k, recipe in enumerate(recipes)
        ]


class Options(TypedDict, total=False):
    """What can be asked for beside the prompt; `LatentDiffusion.recipes` says what each means."""

    negative: str
    steps: int | None
    guidance: float | None
    sampler: str | None
    schedule: str | None
    guides: Sequence[str | Mapping[str, Any] | Guide]
    seed: int | None
    size: tuple[int, int] | int | None
    count: int


def built_in() -> list[str]:
    """Names of the models that come with undust."""
    return sorted(path.parent.name for path in BUILT_IN.glob(f"*/{INDEX}"))


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> LatentDiffusion:
    """A built-in model by name, or the diffusers folder or single-file checkpoint at a path.

    dtype: of the weights in memory, float32 unless told; device: the CPU unless told.
    Raises UndustError for a name that is not known and for what is no whole model.
    """
    folder = Path(name_or_path)
    if str(name_or_path) in built_in():
        folder = BUILT_IN / str(name_or_path)
    elif not folder.exists():
        raise unknown("model", str(name_or_path), built_in())
    dtype = dtype or torch.float32
    model = _from_file(folder, dtype) if folder.is_file() else _from_folder(folder, dtype)
    for network in (model.autoencoder, model.unet, model.text_encoder):
        network.eval().requires_grad_(False).to(device or "cpu")
    return model


def _from_file(path: Path, dtype: torch.dtype) -> LatentDiffusion:
    """The model in a checkpoint of the original layout."""
    parts = load_single_file(path, dtype)
    return LatentDiffusion(
        parts.autoencoder,
        parts.unet,
        parts.text_encoder,
        parts.tokenizer,
        parts.variant.process(),
        parts.variant.prediction,
        name=path.stem,
        hash=content_hash(path)[:10],
    )


def _from_folder(folder: Path, dtype: torch.dtype) -> LatentDiffusion:
    parts = read_model_index(folder)
    for name, kind in PARTS.items():
        if parts.get(name, ("", ""))[1] != kind:
            found = parts.get(name, ("", "none"))[1]
            raise UndustError(f"{folder} is not supported: its {name} is {found}, not {kind}")
    autoencoder = load_autoencoder(folder / "vae", dtype)
    unet = load_network(UNet, UNetConfig, folder / "unet", dtype)
    text_encoder = load_network(TextEncoder, TextEncoderConfig, folder / "text_encoder", dtype)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    process, prediction = read_scheduler(read_json(scheduler), scheduler)
    hashes = "".join(
        content_hash(path)
        for name in ("text_encoder", "unet", "vae")
        for path in sorted((folder / name).glob("*.safetensors"))
    )
    return LatentDiffusion(
        autoencoder,
        unet,
        text_encoder,
        tokenizer_files.load(folder / "tokenizer"),
        process,
        prediction,
        name=folder.resolve().name,
        hash=hashlib.sha256(hashes.encode()).hexdigest()[:10],
    )


def _last(steps: Iterator[Step]) -> Step:
    *_, last = steps
    return last
