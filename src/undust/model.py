"""A latent diffusion model: first stage, denoiser and text encoders, loaded, used and saved."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Unpack, cast

import torch
from torch import Tensor, nn

from undust.adapters.applied_loras import LoraSet
from undust.adapters.offload import Lock, Offload
from undust.diffusion.denoiser import NetworkDenoiser
from undust.diffusion.prediction import prediction_on
from undust.errors import UndustError
from undust.formats import loose, model_folder, named, textual_inversion
from undust.formats.controlnet import load as load_controlnet
from undust.formats.files import expanded, read_whole
from undust.formats.lora.file import Lora
from undust.formats.lora.file import load as load_lora
from undust.formats.original.model import load as load_single_file
from undust.formats.parts import Parts
from undust.formats.safetensors_file import content_hash
from undust.generation import loop
from undust.generation.asking import Options, recipes
from undust.generation.loop import Picture, Step
from undust.generation.recipe import Recipe
from undust.latent import finite
from undust.latent.conditioner import Conditioner
from undust.latent.denoiser import PlacedUNet
from undust.latent.first_stage import KLFirstStage
from undust.networks import placement
from undust.networks.conditioning import CallOptions, Conditioning
from undust.networks.controlnet import ControlNet, check_fits
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet
from undust.recipe.files import WeightsRef
from undust.recipe.inputs import SizeConditioning


@dataclass(eq=False)
class LatentDiffusion(Parts):
    """The parts of a model that go together; what `undust.load` gives.

    hash: what tells its weights from all others, but for `vae`, a first stage in the place of its
    own; path: where it was loaded from, "" if from inside undust; live: run LoRAs beside the
    weights, so that how much of them is worn can be changed at no cost, instead of merging them
    into the weights; runs_on: the device that each network is brought to when it is asked, and
    taken from when memory runs out, or None to leave all where they lie.
    """

    name: str = ""
    hash: str = ""
    path: str = ""
    vae: WeightsRef | None = None
    live: bool = False
    runs_on: torch.device | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._others: dict[str, LatentDiffusion] = {}
        self._controls: dict[WeightsRef, ControlNet] = {}
        self._loras: dict[str, Lora] = {}
        self._base = self  # without any adapters
        self._lock = Lock()  # of what requests bring, which all of them share
        self._adapted: Mapping[str, nn.Module] = {}  # kept while a request uses it
        self._lora_names: list[str] = []
        self._use(Offload(self.runs_on))

    def _use(self, offload: Offload) -> None:
        """Takes networks to where they run by this."""
        self._offload = offload
        own = {name: network for name, network in self.networks.items() if name != "vae"}
        self._lora_set = LoraSet(own, merge=not self.live, before=offload.clear)
        self._assemble()

    def _assemble(self) -> None:
        """Makes the three parts of the networks."""
        offload = self._offload
        self.first_stage = KLFirstStage(self.autoencoder, offload)
        self.conditioner = Conditioner(
            dict(zip(self.text_names, self.texts, strict=True)),
            self.sizes,
            zeros_for_none=self.zeros_for_nothing,
            offload=offload,
        )
        prediction = prediction_on(self.process, self.prediction)
        self._denoiser: NetworkDenoiser[Conditioning] = NetworkDenoiser(
            PlacedUNet(self.unet, offload), self.process, prediction
        )

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
        return self.first_stage.latent_shape(width, height)

    def length(self, prompt: str | None) -> int:
        """How many tokens a prompt comes to."""
        return self.conditioner.token_count(prompt)

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
        skip = (recipe.clip_skip or 0) if recipe else 0
        return self.conditioner(prompts, self._size_ids(recipe, negative=negative), clip_skip=skip)

    def denoise(
        self, x: Tensor, sigma: Tensor, cond: Conditioning, options: CallOptions | None = None, /
    ) -> Tensor:
        """The clean latents [B, C, h, w] under x = x0 + σ·n at σ [B]; UndustError for NaN."""
        options = (options or CallOptions()).at(sigma)
        asked = partial(self._denoiser, x, sigma, cond)
        if (x0 := asked(options)).isfinite().all():
            return x0
        raise finite.blame(self.networks, self._lora_names, x, cond, options, asked)

    def wearing(self, recipe: Recipe, /) -> LatentDiffusion:
        """The model with the LoRAs and learnt words of a recipe, and with no others.

        It shares all weights that no LoRA changes. Raises UndustError for files that are not what
        they were, or not for this model.
        """
        base = self._base
        loras = [(base._lora(each), each.weight) for each in recipe.loras]
        networks = base._lora_set.applied(loras)
        if not loras and not recipe.embeddings:
            return base
        learnt = [
            (each.word, textual_inversion.load(Path(each.resolve().path), each.word))
            for each in recipe.embeddings
        ]
        other = copy.copy(base)
        other.unet = cast(UNet, networks["unet"])
        other.texts = tuple(
            replace(
                words,
                encoder=cast(TextEncoder, networks[name]),
                embeddings={word: self._fitting(word, found, name) for word, found in learnt},
            )
            for name, words in zip(base.text_names, base.texts, strict=True)
        )
        other._adapted, other._lora_names = networks, [lora.name for lora, _ in loras]
        other._assemble()
        return other

    def control(self, given: WeightsRef, /) -> ControlNet:
        """A ControlNet in this model's precision and place, loaded once.

        Raises UndustError for a file that is not what it was, or not for this model.
        """
        known = WeightsRef(path=given.path, hash=given.hash)
        with self._lock:
            if known not in self._controls:
                network = load_controlnet(Path(known.resolve().path), self.dtype)
                check_fits(network, self.unet)
                self._controls[known] = network.eval().requires_grad_(False)
            return self._controls[known]

    def _lora(self, given: WeightsRef) -> Lora:
        settled = given.resolve()
        with self._lock:
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
        with self._lock:
            if name_or_path not in self._others:
                with torch.inference_mode(False):  # tensors of inference could not be changed later
                    other = load(name_or_path, dtype=self.dtype, device=self.device)
                other._use(self._offload)  # so that each makes room for the other
                self._others[name_or_path] = other
            return self._others[name_or_path]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] → pictures [B, 3, H, W], about in [-1, 1]."""
        return self.first_stage.decode(latents)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] → the means of their latents [B, C, h, w]."""
        return self.first_stage.encode(pictures).mean

    def _size_ids(self, recipe: Recipe | None, *, negative: bool) -> list[float]:
        """The numbers about the picture that Stable Diffusion XL is given, heights before widths.

        Its refiner is given, instead of the size that the picture is to have, how much people like
        it: 6, or 2.5 for a negative prompt, as diffusers has it.
        """
        if not self.sizes:
            return []
        width, height = (recipe.width, recipe.height) if recipe else self.size
        framing = (recipe.framing if recipe else None) or SizeConditioning()
        original, target = framing.original or (width, height), framing.target or (width, height)
        last = [2.5 if negative else 6.0] if self.sizes == 5 else target[::-1]
        return [*original[::-1], *framing.crop[::-1], *last]

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
        was, now = (vae.hash if vae else "its own" for vae in (recipe.vae, self.vae))
        if was != now:
            raise UndustError(f"the picture was made with another first stage: {was}, not {now}")
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
        if self.live and self._lora_names:
            raise UndustError(
                "save: LoRAs that are worn live are not in the weights; load the model without live"
            )
        model_folder.write(self, expanded(folder), dtype)

    def _batch(self, recipes: list[Recipe], noise: Tensor | None) -> list[Recipe]:
        given = {"batch": len(recipes), "given_noise": noise is not None}
        return [
            Recipe.read({**dict(recipe), **given, "place": k}) for k, recipe in enumerate(recipes)
        ]


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    vae: str | Path | None = None,
    live: bool = False,
) -> LatentDiffusion:
    """A built-in model by name, or the diffusers folder or single-file checkpoint at a path.

    Or, with the extra `hub`, org/name or org/name@revision on the Hugging Face hub: what is cached
    first, and after that always the same commit.

    dtype: of the weights in memory, "fp16" or "float16" will do too; float32 unless told; device:
    the CPU unless told; vae: a first stage to use instead of the model's own: a file, a folder, or
    a model's folder; live: as `LatentDiffusion` has it.
    Raises UndustError for a name that is not known and for what is no whole model.
    """
    folder, dtype = named.find(name_or_path), placement.precision(dtype or "fp32")
    if not folder.is_dir():
        single = partial(load_single_file, first_stage=vae is None)
        name, read, hashed = folder.stem, single, content_hash
    else:
        name, read, hashed = folder.resolve().name, model_folder.read, model_folder.weights_hash

    def opened() -> tuple[Parts, str]:
        # The hash of some gigabytes takes as long as reading them.
        with ThreadPoolExecutor(1) as beside:
            digits = beside.submit(hashed, folder)
            return read(folder, dtype), digits.result()[:10]

    parts, found = read_whole(folder, opened)  # a run may be publishing it
    instead = None
    if vae is not None:
        instead = WeightsRef(path=str(loose.place(Path(vae)))).resolve()
        parts.autoencoder = loose.first_stage(Path(instead.path), parts)
    for network in parts.networks.values():
        network.eval().requires_grad_(False)
    return LatentDiffusion(
        **vars(parts),
        name=name,
        hash=found,
        path="" if folder.parent == named.BUILT_IN else str(name_or_path),
        vae=instead,
        live=live,
        runs_on=placement.device(device),
    )


def _last(steps: Iterator[Step]) -> Step:
    *_, last = steps
    return last
