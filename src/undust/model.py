"""A latent diffusion model: first stage, denoiser and text encoders, loaded, used and saved."""

from __future__ import annotations

import copy
import hashlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from undust.adapters.control import summed
from undust.adapters.offload import Offload
from undust.adapters.worn import Live, Merged, Outfit, Worn
from undust.conditioning.condition import Conditioning, Control
from undust.diffusion.denoiser import NetworkDenoiser
from undust.diffusion.prediction import prediction_on
from undust.errors import UndustError, unknown
from undust.formats import hub, loose, model_folder, pickles, textual_inversion
from undust.formats.controlnet import load as load_controlnet
from undust.formats.folder import INDEX
from undust.formats.lora.file import Lora
from undust.formats.lora.file import load as load_lora
from undust.formats.original.model import load as load_single_file
from undust.formats.parts import Parts
from undust.formats.safetensors_file import content_hash
from undust.generation import first_stage, loop
from undust.generation.asked import Framing
from undust.generation.asking import Options, recipes
from undust.generation.given import GivenWeights
from undust.generation.loop import Picture, Step
from undust.generation.recipe import Recipe
from undust.networks.controlnet import ControlNet, check_fits

BUILT_IN = Path(__file__).parent / "models"


@dataclass(eq=False)
class LatentDiffusion(Parts):
    """The parts of a model that go together; what `undust.load` gives.

    hash: what tells its weights from all others; live: run LoRAs beside the weights, so that how
    much of them is worn can be changed at no cost, instead of merging them into the weights;
    runs_on: the device that each network is brought to when it is asked, and taken from when memory
    runs out, or None to leave all where they lie.
    """

    name: str = ""
    hash: str = ""
    live: bool = False
    runs_on: torch.device | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._others: dict[str, LatentDiffusion] = {}
        self._controls: dict[GivenWeights, ControlNet] = {}
        self._loras: dict[str, Lora] = {}
        self._offload = Offload(self.runs_on)
        self._worn: Worn = (Live if self.live else Merged)(self.networks, self._offload.clear)
        self._outfit: Outfit = ()
        self._denoiser = self._bound()

    def _bound(self) -> NetworkDenoiser[Conditioning]:
        prediction = prediction_on(self.process, self.prediction)
        return NetworkDenoiser(self._network, self.process, prediction)

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are kept in."""
        return self.unet.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where it is asked."""
        return self.runs_on or self.unet.conv_in.weight.device

    @property
    def precision(self) -> str:
        """What its weights are kept in, by name, such as "float32"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures that the model was trained on, pixels."""
        sample = self.unet.config.sample_size or 64
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return width * self.factor, height * self.factor

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of a picture; UndustError if the size is not divisible."""
        factor = self.factor
        if width % factor or height % factor or min(width, height) < factor:
            fits = "x".join(str(max(1, round(side / factor)) * factor) for side in (width, height))
            raise UndustError(
                f"size: {width}x{height} is not divisible by {factor}; {fits} would be"
            )
        return (self.autoencoder.config.latent_channels, height // factor, width // factor)

    def length(self, prompt: str | None) -> int:
        """How many tokens a prompt comes to."""
        return self.texts[0].length(prompt or "")

    def condition(
        self,
        prompts: Sequence[str | None],
        recipe: Recipe | None = None,
        *,
        negative: bool = False,
    ) -> Conditioning:
        """The prompts, tokenized and encoded: text [B, T, D]; None is no words at all.

        recipe: for what else the model is told, such as the picture's size; negative: whether the
        prompts are what to stay away from.
        """
        self._worn.wear(self._outfit)
        skip = (recipe.clip_skip or 0) if recipe else 0
        said = [prompt or "" for prompt in prompts]
        read = [
            self._offload.ask(words.encoder, partial(words, said, skip)) for words in self.texts
        ]
        text = torch.cat([states for states, _ in read], -1)
        pooled = read[-1][1]
        if self.zeros_for_nothing:
            any_ = torch.tensor([prompt is not None for prompt in prompts], device=text.device)
            text = torch.where(any_[:, None, None], text, 0)
            pooled = None if pooled is None else torch.where(any_[:, None], pooled, 0)
        return Conditioning(text, pooled, self._told(len(prompts), recipe, negative=negative))

    def denoise(self, x: Tensor, sigma: Tensor, cond: Conditioning, /) -> Tensor:
        """The clean latents [B, C, h, w] under x = x0 + σ·n, given σ [B]."""
        self._worn.wear(self._outfit)
        return self._denoiser(x, sigma, cond.at(sigma))

    def wearing(self, recipe: Recipe, /) -> LatentDiffusion:
        """The model with what a recipe changes of its weights and words.

        It shares all weights with this one; each puts on its own LoRAs before it is asked. Raises
        UndustError for files that are not what they were, or not for this model.
        """
        outfit = tuple((self._lora(each), each.weight) for each in recipe.loras)
        if outfit == self._outfit and not recipe.embeddings:
            return self
        other = copy.copy(self)
        other._outfit = outfit
        learnt = [
            (each.word, textual_inversion.load(Path(each.settle().path)))
            for each in recipe.embeddings
        ]
        other.texts = tuple(
            replace(
                words, embeddings={word: self._fitting(word, found, name) for word, found in learnt}
            )
            for name, words in zip(self.text_names, self.texts, strict=True)
        )
        other._denoiser = other._bound()
        return other

    def control(self, given: GivenWeights, /) -> ControlNet:
        """A ControlNet in this model's precision and place, loaded once.

        Raises UndustError for a file that is not what it was, or not for this model.
        """
        known = GivenWeights(path=given.path, hash=given.hash)
        if known not in self._controls:
            network = load_controlnet(Path(known.settle().path), self.dtype)
            check_fits(network, self.unet)
            self._controls[known] = network.eval().requires_grad_(False)
        return self._controls[known]

    def _lora(self, given: GivenWeights) -> Lora:
        settled = given.settle()
        if settled.hash not in self._loras:
            networks = {name: net for name, net in self.networks.items() if name != "vae"}
            self._loras[settled.hash] = load_lora(Path(settled.path), networks)
        return self._loras[settled.hash]

    def _fitting(self, word: str, found: Mapping[str, Tensor], name: str) -> Tensor:
        """The vectors of a learnt word that are for one of the text encoders."""
        encoder = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}[name]
        vectors = found.get(encoder if encoder in found else "")
        if vectors is None:
            raise UndustError(f"the embedding '{word}' has no vectors for the model's {name}")
        return vectors

    def another(self, name_or_path: str, /) -> LatentDiffusion:
        """Another model in this one's precision and place, loaded once."""
        if name_or_path not in self._others:
            other = load(name_or_path, dtype=self.dtype, device=self.device)
            other._offload = self._offload  # so that each makes room for the other
            self._others[name_or_path] = other
        return self._others[name_or_path]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] → pictures [B, 3, H, W], about in [-1, 1]."""
        config = self.autoencoder.config
        unscaled = latents / config.scaling_factor + (config.shift_factor or 0.0)
        vae = self.autoencoder
        return self._offload.ask(vae, lambda: first_stage.decode(vae, unscaled)).to(latents.device)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] → the means of their latents [B, C, h, w]."""
        config, vae = self.autoencoder.config, self.autoencoder
        mean = self._offload.ask(vae, lambda: first_stage.encode(vae, pictures)).to(pictures.device)
        return (mean - (config.shift_factor or 0.0)) * config.scaling_factor

    def _network(self, x: Tensor, timestep: Tensor, cond: Conditioning) -> Tensor:
        device, dtype = self.device, self.dtype
        latent, timestep = x.to(device, dtype), timestep.to(device)
        context, pooled = cond.text.to(device, dtype), cond.pooled
        label = None if cond.label is None else cond.label.to(device)

        def controlled(control: Control) -> list[Tensor]:
            return [*control(latent, timestep, context, pooled, cond.sizes)]

        def asked() -> Tensor:
            return self.unet(
                seen,
                timestep,
                context,
                cond.perturbed,
                pooled=pooled,
                sizes=cond.sizes,
                label=label,
                control=added,
            )

        added = summed(
            self._offload.ask(each.network, partial(controlled, each)) for each in cond.control
        )
        seen = latent if cond.beside is None else torch.cat([latent, cond.beside.to(latent)], 1)
        return self._offload.ask(self.unet, asked).to(x)

    def _told(self, count: int, recipe: Recipe | None, *, negative: bool) -> Tensor | None:
        """The numbers [B, 6 or 5] about the picture that Stable Diffusion XL is told.

        Heights stand before widths. Its refiner is told, instead of the size that the picture is to
        have, how much people like it: 6, or 2.5 of what to stay away from, as diffusers has it.
        """
        if not self.sizes:
            return None
        width, height = (recipe.width, recipe.height) if recipe else self.size
        framing = (recipe.framing if recipe else None) or Framing()
        original, target = framing.original or (width, height), framing.target or (width, height)
        numbers = [*original[::-1], *framing.crop[::-1]]
        numbers += [2.5 if negative else 6.0] if self.sizes == 5 else target[::-1]
        if len(numbers) != self.sizes:
            raise UndustError(
                f"the U-Net is told {self.sizes} numbers; Stable Diffusion XL's are 6 or 5"
            )
        return torch.tensor([numbers] * count, device=self.device)

    def recipes(self, prompts: str | Sequence[str], **options: Unpack[Options]) -> list[Recipe]:
        """A recipe for each picture: every prompt with the seeds `seed` … `seed + count − 1`.

        Raises UndustError for no prompts, and for any value that cannot be.
        """
        return recipes(self, prompts, options)

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
        asked = self.recipes(prompts, **options)
        if noise is not None:
            batch = self._batch(asked, noise)
            return loop.finish(batch, _last(loop.paint(self, batch, noise)))
        return [
            picture
            for batch in loop.batches(self, asked, exact=exact)
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
        if recipe.precision != self.precision:
            raise UndustError(
                f"the picture was made in {recipe.precision}; the model is in {self.precision}"
            )
        return batch

    def save(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Writes the model as a diffusers folder, replacing a model that is there, or none of it.

        dtype: of the weights in the files; None keeps each as it is. Raises UndustError, and leaves
        the folder alone, if it holds anything but a model, and for LoRAs that are worn live.
        """
        if self.live and self._outfit:
            raise UndustError(
                "save: LoRAs that are worn live are not in the weights; load the model without live"
            )
        self._worn.wear(self._outfit)
        model_folder.write(self, Path(folder), dtype)

    def _batch(self, recipes: list[Recipe], noise: Tensor | None) -> list[Recipe]:
        given = {"batch": len(recipes), "given_noise": noise is not None}
        return [
            Recipe.read({**dict(recipe), **given, "place": k}) for k, recipe in enumerate(recipes)
        ]


def built_in() -> list[str]:
    """Names of the models that come with undust."""
    return sorted(path.parent.name for path in BUILT_IN.glob(f"*/{INDEX}"))


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    vae: str | Path | None = None,
    live: bool = False,
) -> LatentDiffusion:
    """A built-in model by name, or the diffusers folder or single-file checkpoint at a path.

    Or, with the extra `hub`, org/name or org/name@revision on the Hugging Face hub: what is cached
    first, and after that always the same commit.

    dtype: of the weights in memory, float32 unless told; device: the CPU unless told; vae: a first
    stage to use instead of the model's own, as a folder or a file; live: as `LatentDiffusion` has
    it.
    Raises UndustError for a name that is not known and for what is no whole model.
    """
    given, _, revision = str(name_or_path).partition("@")
    folder = Path(name_or_path)
    if str(name_or_path) in built_in():
        folder = BUILT_IN / str(name_or_path)
    elif hub.is_name(given) and not folder.exists():
        folder = hub.fetch(given, revision or None)
    elif not folder.exists():
        if folder.suffix or len(folder.parts) > 1:
            raise UndustError(f"there is no model at {folder}: it does not exist")
        raise unknown("model", str(name_or_path), built_in())
    dtype, place = dtype or torch.float32, _device(device)
    if folder.is_file():
        if pickles.is_pickle(folder):
            raise UndustError(
                f"{folder} is a pickle, which can run code; make a model of it that cannot: "
                f"undust convert {shlex.quote(str(folder))} {shlex.quote(folder.stem)} --to folder"
            )
        name, read, hashed = folder.stem, load_single_file, content_hash
    else:
        name, read, hashed = folder.resolve().name, model_folder.read, model_folder.weights_hash
    # The hash of some gigabytes takes as long as reading them.
    with ThreadPoolExecutor(1) as beside:
        digits = beside.submit(hashed, folder)
        parts = read(folder, dtype)
        found = digits.result()[:10]
    if vae is not None:
        parts.autoencoder, other = loose.first_stage(Path(vae), parts)
        found = hashlib.sha256((found + other).encode()).hexdigest()[:10]
    for network in parts.networks.values():
        network.eval().requires_grad_(False)
    return LatentDiffusion(**vars(parts), name=name, hash=found, live=live, runs_on=place)


def _device(device: torch.device | str | None) -> torch.device:
    try:
        place = torch.device(device or "cpu")
        return torch.empty(0, device=place).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise UndustError(f"device: {device} cannot be used here: {reason}") from error


def _last(steps: Iterator[Step]) -> Step:
    *_, last = steps
    return last
