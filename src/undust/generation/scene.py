"""From recipes to the one denoiser that a sampler is given."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from undust.adapters.control import Control
from undust.conditioning.canny import canny_edges
from undust.diffusion.guidance import (
    CLOSE,
    Branch,
    ClassifierFree,
    KnownRegion,
    PromptSchedule,
    Run,
)
from undust.errors import UndustError
from undust.generation.ground import Ground, prepared
from undust.latent.model import LatentModel
from undust.networks.attention import Perturbation
from undust.networks.conditioning import CallOptions, Conditioning
from undust.pictures import from_image

if TYPE_CHECKING:
    from undust.adapters.control import Control
    from undust.diffusion.samplers.registry import Denoise
    from undust.generation.recipe import Recipe
    from undust.recipe.inputs import Refiner


class Ask(Protocol):
    """Prompts, one for each picture -> a network asked for them."""

    def __call__(
        self,
        prompts: Sequence[str | None],
        /,
        toward: Sequence[str] = (),
        *,
        negative: bool = False,
    ) -> Denoise:
        """toward: prompts that the batch's pictures are on the way to, if they are.

        negative: whether it is what to stay away from.
        """
        ...


class Scene:
    """What the guides of a batch find: its model, its recipes, its σ, and what it asks for."""

    def __init__(
        self,
        model: LatentModel,
        batch: Sequence[Recipe],
        sigmas: Tensor,
        ground: Ground,
        controls: Iterable[Control] = (),
    ) -> None:
        self.model, self.batch, self.sigmas, self.ground = model, batch, sigmas, ground
        self.controls = tuple(controls)
        self.negative = self.asker()([recipe.negative for recipe in batch], negative=True)
        self.positive = self.asked(self.asker())

    @cached_property
    def empty(self) -> Denoise:
        """No prompt; where there are no negative prompts it is asked together with them."""
        if not any(recipe.negative for recipe in self.batch):
            return self.negative
        return self.asker()([None] * len(self.batch), negative=True)

    def asker(self, model: LatentModel | None = None, perturbed: Perturbation | None = None) -> Ask:
        """Asks the batch's model or another one, as it is or with its self-attention weakened."""
        recipe = self.batch[0]
        network = self.model if model is None else with_fitting_adapters(model, recipe)

        def ask(
            prompts: Sequence[str | None],
            /,
            toward: Sequence[str] = (),
            *,
            negative: bool = False,
        ) -> Denoise:
            ids = network.size_ids((recipe.width, recipe.height), recipe.framing, negative=negative)
            condition = partial(network.condition, size_ids=ids, clip_skip=recipe.clip_skip or 0)
            cond = condition(prompts)
            if toward:
                cond = cond.toward(condition(toward), parts(self.batch))
            cond = self._surrounded(cond, network, negative=negative)
            # Another model's U-Net has skips of other widths.
            controls = self.controls if network is self.model else ()
            options = CallOptions((perturbed,) * len(cond), controls)
            return Branch(network.denoise, cond, options)

        return ask

    def everywhere(self, ask: Ask, prompt: str) -> Denoise:
        """The same prompt for all pictures."""
        return ask([prompt] * len(self.batch))

    def asked(self, ask: Ask) -> Denoise:
        """All that is asked for: the pictures' prompts, with the guides that change them."""
        toward = [each.toward.prompt if each.toward else each.prompt for each in self.batch]
        prompts = [each.prompt for each in self.batch]
        denoise = ask(prompts, toward=toward if toward != prompts else ())
        for guide in self.batch[0].guides:
            denoise = guide.asked(self, denoise, ask)
        return denoise

    def denoiser(self) -> Denoise:
        """What the prompts and the guides come to."""
        guides = self.batch[0].guides
        scale, denoise = self.batch[0].guidance, None
        for guide in guides:
            scale = guide.scaled(self) if guide.role == "scale" else scale
        for guide in guides:
            denoise = guide.mixed(self, scale) if guide.role == "mix" else denoise
        denoise = denoise or ClassifierFree(self.positive, self.negative, scale)
        for guide in guides:
            denoise = guide.guided(self, denoise)
        return denoise

    def _surrounded(
        self, cond: Conditioning, network: LatentModel, *, negative: bool
    ) -> Conditioning:
        """With what the network sees beside the words."""
        count = len(cond)
        if network.extra_channels:
            seen = self.ground.beside
            if seen is None or seen.shape[1] != network.extra_channels:
                raise UndustError(
                    f"{network.name} cannot be asked here: its U-Net sees {network.extra_channels} "
                    "channels beside the latent, which are not painted with"
                )
            cond = replace(cond, extra_channels=seen.expand(count, -1, -1, -1))
        if network.low_res_process is not None and self.ground.label is not None:
            cond = replace(cond, label=torch.full((count,), self.ground.label))
        if not self.controls or network is not self.model:
            return cond
        return replace(cond, negative=torch.full((count,), negative))


def parts(batch: Sequence[Recipe]) -> Tensor:
    """How far each picture [B] is on its way to another one, 0 if it is on none."""
    return torch.tensor([each.toward.part if each.toward else 0.0 for each in batch])


def controls(model: LatentModel, recipe: Recipe, sigmas: Tensor) -> Iterator[Control]:
    """The ControlNets of a recipe, each with its map and the noise levels between which it acts."""
    steps = len(sigmas) - 1
    for asked in recipe.controls:
        during = [
            step
            for step in range(steps)
            if step / steps >= asked.start and (step + 1) / steps <= asked.end
        ]
        if not during:
            raise UndustError(
                f"control: {asked.start:g} to {asked.end:g} is shorter than one of {steps} steps"
            )
        size = recipe.width, recipe.height
        hint = from_image(asked.picture.image(), size).float() / 255
        hint = canny_edges(hint) if asked.edges else hint
        # A little more on either side: samplers ask at levels rounded to float32.
        high = math.inf if during[0] == 0 else float(sigmas[during[0]]) * (1 + CLOSE)
        low = 0.0 if during[-1] == steps - 1 else float(sigmas[during[-1]]) * (1 - CLOSE)
        yield Control(model.control(asked), hint[None], asked.weight, low, high)


def refiner_model(model: LatentModel, refiner: Refiner) -> LatentModel:
    """The model that takes over. Raises UndustError if it is not what it was, or cannot."""
    other = model.load_other(refiner.model)
    if refiner.model_hash not in ("", other.hash):
        raise UndustError(
            f"refiner: {refiner.model} is another model ({other.hash}) than it was "
            f"({refiner.model_hash})"
        )
    if other.latents != model.latents:
        raise UndustError(
            f"refiner: {refiner.model} has other latents: channels, factor, scale and shift are "
            f"{other.latents}, not {model.latents}"
        )
    return other


def with_adapters(model: LatentModel, recipe: Recipe) -> LatentModel:
    """The model with the LoRAs and learnt words of a recipe, as `LatentModel.with_adapters`."""
    return model.with_adapters(recipe.loras, recipe.embeddings)


def with_fitting_adapters(other: LatentModel, recipe: Recipe) -> LatentModel:
    """Another model with what a recipe puts in: all of it, or if that does not fit the words alone.

    A RuntimeWarning tells of LoRAs that are left out.
    """
    try:
        return with_adapters(other, recipe)
    except UndustError:
        if not recipe.loras:
            raise
    words = other.with_adapters(embeddings=recipe.embeddings)
    told = f"the LoRAs do not fit {other.name}: it paints without"
    warnings.warn(told, RuntimeWarning, stacklevel=2)
    return words


def guided(
    model: LatentModel, batch: Sequence[Recipe], sigmas: Tensor, ground: Ground | None = None
) -> Run:
    """The denoiser of a batch, whose recipes have the same `settings`, for one run."""
    ground = prepared(model, batch) if ground is None else ground
    shown = controls(model, batch[0], sigmas)
    denoise = Scene(model, batch, sigmas, ground, shown).denoiser()
    refiner = batch[0].refiner
    if refiner is not None:
        other = with_fitting_adapters(refiner_model(model, refiner), batch[0])
        # It takes over below this time step, as an ensemble of two experts (Podell et al. 2023).
        first, last = model.process.time_range
        turn = round(last + 1 - refiner.after * (last + 1 - first)) - 0.5
        level = float(model.process.sigma(turn))
        denoise = PromptSchedule(denoise, [(level, Scene(other, batch, sigmas, ground).denoiser())])
    if ground.unknown is not None and ground.begin is not None:
        denoise = KnownRegion(denoise, ground.begin, ground.unknown)
    return Run(denoise)
