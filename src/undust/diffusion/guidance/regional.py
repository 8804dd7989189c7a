"""Other prompts for other places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undust.diffusion.guidance.base import EvalState, Guidance, GuidanceRequest
from undust.diffusion.guidance.registry import GuidanceContext, Mask, Prompt, guidance
from undust.diffusion.samplers.registry import Denoise
from undust.errors import UndustError


@guidance("region", "prompt")
@dataclass(frozen=True, eq=False)
class Regional(Guidance):
    """Another prompt where a mask is white; the first where all masks are black.

    x0 = Σ mask·region / Σ mask at every place (Bar-Tal et al. 2023, on x0): where masks overlap
    their prompts share the place.

    masks: [R, H, W] as x is [B, …, H, W], not below 0. Regions whose mask is 0 everywhere are not
    asked; neutral where one region is left. Raises UndustError for masks of another number or size,
    below 0, or 0 in all regions at once.
    """

    regions: Sequence[Denoise]
    masks: Tensor

    def __post_init__(self) -> None:
        if self.masks.ndim != 3 or len(self.masks) != len(self.regions):
            raise UndustError(
                f"regions: masks of shape {[*self.masks.shape]} do not fit {len(self.regions)} "
                "regions; they are [regions, height, width]"
            )
        if not (self.masks >= 0).all() or not self.masks.isfinite().all():
            raise UndustError("regions: a mask has to be finite and not below 0")
        if not self.masks.sum(0).all():
            raise UndustError("regions: at some place every mask is 0")

    @classmethod
    def build(cls, context: GuidanceContext, *, prompt: Prompt, mask: Mask) -> Regional:
        """The regions so far, or one without a mask, and another one.

        The first prompt is left where all masks are 0.
        """
        regions, masks = [context.denoise], mask[None][:0]
        if isinstance(context.denoise, Regional):
            regions, masks = [*context.denoise.regions], context.denoise.masks[1:]
        masks = torch.cat([masks, mask[None]])
        rest = (1 - masks.sum(0, keepdim=True)).clamp(min=0)
        return cls([*regions, context.conditioned_on(prompt)], torch.cat([rest, masks]))

    def estimate(self, at: EvalState) -> GuidanceRequest:
        """The regions that have a place."""
        if at.x.shape[-2:] != self.masks.shape[1:]:
            raise UndustError(
                f"regions: masks of {[*self.masks.shape[1:]]} do not fit {[*at.x.shape[-2:]]}"
            )
        there = [place for place, mask in enumerate(self.masks) if mask.any()]
        estimates = yield [self.regions[place] for place in there]
        if len(estimates) == 1:
            return estimates[0]
        shares = (self.masks / self.masks.sum(0)).to(at.x)
        return sum(
            (shares[place] * estimate for place, estimate in zip(there, estimates, strict=True)),
            start=at.x.new_zeros(()),
        )
