"""From recipes to the one denoiser that a sampler is given."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from undust.diffusion.guidance import Branch, ClassifierFree, Run
from undust.networks.attention import Perturbation

if TYPE_CHECKING:
    from undust.diffusion.samplers.registry import Denoise
    from undust.generation.loop import Model
    from undust.generation.recipe import Recipe


class Ask(Protocol):
    """Prompts, one for each picture -> a network asked for them."""

    def __call__(self, prompts: Sequence[str], /, toward: Sequence[str] = ()) -> Denoise:
        """toward: prompts that the batch's pictures are on the way to, if they are."""
        ...


class Scene:
    """What the guides of a batch find: its model, its recipes, its σ, and what it asks for."""

    def __init__(self, model: Model, batch: Sequence[Recipe], sigmas: Tensor) -> None:
        self.model, self.batch, self.sigmas = model, batch, sigmas
        self.negative = self.asker()([recipe.negative for recipe in batch])
        self.positive = self.asked(self.asker())

    @cached_property
    def empty(self) -> Denoise:
        """No prompt; where the negative prompts are empty it is asked together with them."""
        if not any(recipe.negative for recipe in self.batch):
            return self.negative
        return self.everywhere(self.asker(), "")

    def asker(self, model: Model | None = None, perturbed: Perturbation | None = None) -> Ask:
        """Asks the batch's model or another one, as it is or with its self-attention weakened."""
        network = model or self.model

        def ask(prompts: Sequence[str], /, toward: Sequence[str] = ()) -> Denoise:
            cond = network.condition(prompts)
            if toward:
                cond = cond.toward(network.condition(toward), parts(self.batch))
            return Branch(network.denoise, cond if perturbed is None else cond.perturb(perturbed))

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


def parts(batch: Sequence[Recipe]) -> Tensor:
    """How far each picture [B] is on its way to another one, 0 if it is on none."""
    return torch.tensor([each.toward.part if each.toward else 0.0 for each in batch])


def guided(model: Model, batch: Sequence[Recipe], sigmas: Tensor) -> Run:
    """The denoiser of a batch, whose recipes have the same `settings`, for one run."""
    scene = Scene(model, batch, sigmas)
    guides = batch[0].guides
    scale, denoise = batch[0].guidance, None
    for guide in guides:
        scale = guide.scaled(scene) if guide.role == "scale" else scale
    for guide in guides:
        denoise = guide.mixed(scene, scale) if guide.role == "mix" else denoise
    denoise = denoise or ClassifierFree(scene.positive, scene.negative, scale)
    for guide in guides:
        denoise = guide.guided(scene, denoise)
    return Run(denoise)
