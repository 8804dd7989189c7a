"""Other prompts for other places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from undust.diffusion.guidance.base import Asking, Guidance, Moment
from undust.errors import UndustError

if TYPE_CHECKING:
    from undust.diffusion.samplers.registry import Denoise


@dataclass(frozen=True, eq=False)
class Regional(Guidance):
    """x0 = Σ mask·region / Σ mask at every place (Bar-Tal et al. 2023, on x0).

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

    def ask(self, now: Moment) -> Asking:
        """The regions that have a place."""
        if now.x.shape[-2:] != self.masks.shape[1:]:
            raise UndustError(
                f"regions: masks of {[*self.masks.shape[1:]]} do not fit {[*now.x.shape[-2:]]}"
            )
        there = [place for place, mask in enumerate(self.masks) if mask.any()]
        estimates = yield [self.regions[place] for place in there]
        if len(estimates) == 1:
            return estimates[0]
        shares = (self.masks / self.masks.sum(0)).to(now.x)
        return sum(
            (shares[place] * estimate for place, estimate in zip(there, estimates, strict=True)),
            start=now.x.new_zeros(()),
        )
