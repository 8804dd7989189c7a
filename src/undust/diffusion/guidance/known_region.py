"""Inpainting: parts of the picture are known, and only the rest is generated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from undust.diffusion.guidance.base import EvalState, Guidance, GuidanceRequest
from undust.diffusion.samplers.registry import Denoise
from undust.errors import UndustError


@dataclass(frozen=True, eq=False)
class KnownRegion(Guidance):
    """x0 where `unknown` is 1, what is known where it is 0, and in between a share of each.

    known: [1 or B, C, h, w]; unknown: [h, w] in 0 … 1. Under x = known + σ·n the flow moves the
    known part straight along its own noise, so this is what Lugmayr et al. 2022, eq. 8 do at each
    step (the known part under its noise put back into x), in the denoiser and with one noise. It
    is neutral where nothing is known. Raises UndustError for another shape or other values.
    """

    denoise: Denoise
    known: Tensor
    unknown: Tensor

    def __post_init__(self) -> None:
        if self.unknown.shape != self.known.shape[-2:]:
            raise UndustError(
                f"known region: a mask of {[*self.unknown.shape]} does not fit a latent of "
                f"{[*self.known.shape[-2:]]}"
            )
        if not bool(((self.unknown >= 0) & (self.unknown <= 1)).all()):
            raise UndustError("known region: a mask has to lie in 0 … 1")

    def estimate(self, at: EvalState) -> GuidanceRequest:
        """The denoiser; nothing of its answer is left where the picture is known."""
        del at
        [estimate] = yield [self.denoise]
        if bool((self.unknown == 1).all()):
            return estimate
        return torch.lerp(
            self.known.to(estimate).expand_as(estimate),
            estimate,
            self.unknown.to(estimate).expand_as(estimate),
        )
