"""Guides that change what is asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Self

import torch
from pydantic import Field, model_validator

from undust.diffusion.guidance import Composable, PromptSchedule, Regional
from undust.errors import UndustError
from undust.formats.files import expanded
from undust.generation.guides.base import Guide, guide
from undust.pictures import DATA, from_data, grey, levels, read_image, to_data

if TYPE_CHECKING:
    from undust.diffusion.samplers.registry import Denoise
    from undust.generation.scene import Ask, Scene
    from undust.latent.model import LatentModel


class Asking(Guide):
    """A guide with words of its own."""

    prompt: str = Field(max_length=10_000)


@guide("and", "prompt")
class And(Asking):
    """Another prompt that the picture has to fit as well (Liu et al. 2022).

    weight: how much it counts beside the first, whose weight is 1; below 0 it is AND NOT.
    """

    weight: float = 1.0

    def asked(self, scene: Scene, denoise: Denoise, ask: Ask) -> Denoise:
        """The prompt so far, and this one."""
        asked = ((denoise, 1.0), (scene.everywhere(ask, self.prompt), self.weight))
        return Composable(scene.negative, asked)


@guide("region", "prompt")
class Region(Asking):
    """Another prompt where a mask is white; the first where all masks are black.

    mask: a picture's file, kept in the recipe at the size of the latent. Where masks lie over one
    another their prompts share the place.
    """

    mask: str

    def resolve(self, model: LatentModel, size: tuple[int, int]) -> Self:
        """The mask, read and at the size of the latent."""
        _, height, width = model.latent_shape(*size)
        image = (
            from_data(self.mask)
            if self.mask.startswith(DATA)
            else grey(read_image(expanded(self.mask)))
        )
        return self.model_copy(update={"mask": to_data(image, (width, height))})

    def asked(self, scene: Scene, denoise: Denoise, ask: Ask) -> Denoise:
        """The regions so far, and this one."""
        own = levels(from_data(self.mask))[None]
        recipe = scene.batch[0]
        if own.shape[1:] != scene.model.latent_shape(recipe.width, recipe.height)[1:]:
            raise UndustError(f"guide region: its mask is not for {recipe.width}x{recipe.height}")
        regions, masks = [denoise], own[:0]
        if isinstance(denoise, Regional):
            regions, masks = [*denoise.regions], denoise.masks[1:]
        masks = torch.cat([masks, own])
        rest = (1 - masks.sum(0, keepdim=True)).clamp(min=0)
        regions.append(scene.everywhere(ask, self.prompt))
        return Regional(regions, torch.cat([rest, masks]))


@guide("then", "prompt")
class Then(Asking):
    """Another prompt from some step on.

    after: the share of the steps before it, 0 … 1; or sigma: the noise level from which on.
    """

    after: float | None = Field(None, ge=0, le=1)
    sigma: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if (self.after is None) == (self.sigma is None):
            raise UndustError("guide then: give either after=, a share of the steps, or sigma=")
        return self

    def asked(self, scene: Scene, denoise: Denoise, ask: Ask) -> Denoise:
        """The prompts so far, and then this one."""
        level = self.sigma
        if level is None:
            steps = len(scene.sigmas) - 1
            before = scene.batch[0].whole((self.after or 0) * steps)
            level = scene.sigmas[math.ceil(before)].item()
        turn = (level, scene.everywhere(ask, self.prompt))
        if isinstance(denoise, PromptSchedule):
            return PromptSchedule(denoise.first, [*denoise.later, turn])
        return PromptSchedule(denoise, [turn])
