"""Guides that say how strongly to guide, and how to mix the prompt and the negative prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field, field_validator

from undust.diffusion.guidance import Perpendicular, Projected, Scale, Table, cfg_pp, spread
from undust.errors import UndustError
from undust.generation.guides.base import Guide, guide

if TYPE_CHECKING:
    from undust.diffusion.samplers.registry import Denoise
    from undust.generation.scene import Scene


@guide("scales", "scale")
class Scales(Guide):
    """Guidance scales over the steps, from the first to the last, in place of the one.

    values: as many as there are steps, or fewer, with straight lines in between: "8 2".
    """

    values: tuple[float, ...] = Field(min_length=1, max_length=1000)

    @field_validator("values", mode="before")
    @classmethod
    def _in_words(cls, given: object) -> object:
        return given.split() if isinstance(given, str) else given

    def scaled(self, scene: Scene) -> Scale:
        """A table of the steps."""
        values = torch.tensor(self.values, dtype=torch.float64)
        return Table(spread(values, len(scene.sigmas) - 1), scene.sigmas)


@guide("cfg++", "scale")
class CFGPP(Guide):
    """Guided estimate, unguided noise (Chung et al. 2024); for euler and ddim.

    scale: λ, 0 … 1, in place of the guidance scale.
    """

    scale: float = Field(0.6, ge=0, le=1)

    def check(self, sampler: str) -> None:
        """It has to know the step that the sampler makes."""
        if sampler not in ("ddim", "euler"):
            raise UndustError(f"guide cfg++: it is for the samplers ddim and euler, not {sampler}")

    def scaled(self, scene: Scene) -> Scale:
        """The scales with which Euler's step is CFG++'s."""
        return cfg_pp(self.scale, scene.sigmas)


@guide("apg", "mix")
class APG(Guide):
    """Guidance without saturated colours: adaptive projected (Sadat et al. 2024).

    eta: how much of the part that saturates is left; norm: the longest guidance, none unless given;
    momentum: below 0, guidance that changes on the way is preferred. 1, none and 0 are plain
    guidance.
    """

    eta: float = 0.0
    norm: float | None = Field(None, gt=0)
    momentum: float = Field(-0.5, gt=-1, lt=1)

    def mixed(self, scene: Scene, scale: Scale) -> Denoise:
        """Away from the negative prompt, projected."""
        return Projected(scene.positive, scene.negative, scale, self.eta, self.norm, self.momentum)


@guide("perp-neg", "mix")
class PerpNeg(Guide):
    """Negative prompt without what it shares with the prompt (Armandpour et al. 2023).

    weight: of the negative prompt; at 0 there is none.
    """

    weight: float = 1.0

    def mixed(self, scene: Scene, scale: Scale) -> Denoise:
        """Away from no prompt, and at a right angle away from the negative one."""
        return Perpendicular(scene.positive, scene.negative, scene.empty, scale, self.weight)
