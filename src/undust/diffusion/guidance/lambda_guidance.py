"""Guidance of a video to known views of its scene, with a strength λ for each step and frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from undust.diffusion.guidance.base import EvalState, Guidance, GuidanceRequest
from undust.diffusion.lambda_tables import LambdaTable
from undust.diffusion.samplers.registry import Denoise
from undust.errors import UndustError

FORMS = ("quantile", "blend")


@dataclass(frozen=True, eq=False)
class LambdaGuidance(Guidance):
    """The estimate, with known latents in its place as far as w = λ/(1 + λ) of the table says.

    table: w for the levels of the sampler, of which no others may be asked for; views: the known
    latents, such as those of warped pictures [F, C, h, w], or for each film of the batch
    [B, F, C, h, w]; masks: 1 where they are valid and else 0, [F, h, w], [F, 1, h, w] or
    [B, F, 1, h, w]. Frame 0 is the input picture and valid everywhere.

    form "quantile" (the "directly guided sampling" of You et al. 2025, NVS-Solver): of a frame's
    valid numbers, the share w that is nearest to the known ones is replaced by them. Below one
    number none is replaced. "blend": (x0 + λ·F)/(1 + λ), which is x0 + w·(F − x0), on the mask.
    weight_clamp: the least w, 0 … 1; 0.2 in NVS-Solver's examples.

    With w = 0 it is neutral, and with w = 1 the result is F on the mask, both to the bit. Raises
    UndustError for other shapes, masks that are not of 0 and 1, and latents that are not finite
    where they are valid.
    """

    denoise: Denoise
    table: LambdaTable
    views: Tensor
    masks: Tensor
    form: Literal["quantile", "blend"] = "quantile"
    weight_clamp: float = 0.0

    def __post_init__(self) -> None:
        views, masks = [*self.views.shape], [*self.masks.shape]
        if len(views) not in (4, 5):
            raise UndustError(
                f"lambda guidance: known latents of shape {views} are not [frames, C, h, w]"
            )
        if views[-4] != self.table.num_frames:
            raise UndustError(
                f"lambda guidance: known latents of {views[-4]} frames do not fit a table of "
                f"{self.table.num_frames}"
            )
        frames, height, width = views[-4], views[-2], views[-1]
        fitting = [[frames, height, width], [frames, 1, height, width]]
        if len(views) == 5:
            fitting.append([views[0], frames, 1, height, width])
        if masks not in fitting:
            raise UndustError(
                f"lambda guidance: masks of shape {masks} do not fit known latents of {views}; "
                f"they are {fitting[-1]}"
            )
        if not bool(((self.masks == 0) | (self.masks == 1)).all()):
            raise UndustError("lambda guidance: a mask is 1 where a latent is valid, and else 0")
        if not bool((self.views.isfinite() | ~self._valid).all()):
            raise UndustError("lambda guidance: a latent is not finite where its mask is 1")
        if self.form not in FORMS:
            raise UndustError(f"lambda guidance: '{self.form}' is none of {', '.join(FORMS)}")
        if not 0 <= self.weight_clamp <= 1:
            raise UndustError(f"lambda guidance: weight_clamp {self.weight_clamp} is not in 0 … 1")

    def estimate(self, at: EvalState) -> GuidanceRequest:
        """The denoiser; of its estimate, what the table leaves of it here."""
        weights = self._weights(at)
        [x0] = yield [self.denoise]
        views, valid = self._known(x0)
        if not bool(weights.any()):
            return x0
        if self.form == "blend":
            return _blended(x0, views, valid, weights.to(x0.device))
        return torch.where(_nearest(x0, views, valid, weights.to(x0.device)), views, x0)

    def nearest(self, x0: Tensor, sigma: Tensor) -> Tensor:
        """What the form "quantile" replaces of an estimate x0 at sigma [B]: bool like x0."""
        weights = self._weights(EvalState(x0, sigma, None)).to(x0.device)
        return _nearest(x0, *self._known(x0), weights)

    def _weights(self, at: EvalState) -> Tensor:
        return self.table.row(at.level).clamp(min=self.weight_clamp)

    def _known(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """The known latents and where they are valid, both like x0; UndustError for no fit."""
        if x0.shape[-self.views.ndim :] != self.views.shape or x0.ndim != 5:
            raise UndustError(
                f"lambda guidance: known latents of {[*self.views.shape]} do not fit x "
                f"{[*x0.shape]}, which is [B, F, C, h, w]"
            )
        return self.views.to(x0).expand_as(x0), self._valid.to(x0.device).expand_as(x0)

    @cached_property
    def _valid(self) -> Tensor:
        """The mask as truth values, with the whole of frame 0: [F, 1, h, w] or [B, F, 1, h, w]."""
        masks = self.masks.unsqueeze(1) if self.masks.ndim == 3 else self.masks
        valid = masks == 1
        valid[..., 0, :, :, :] = True
        return valid


def _blended(x0: Tensor, views: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    """x0 + w·(F − x0) where it is valid; all [B, F, C, h, w], weights [F]."""
    share = weights.to(x0).reshape(-1, 1, 1, 1).expand_as(x0)
    return torch.where(valid & (share > 0), torch.lerp(x0, views, share), x0)


def _nearest(x0: Tensor, views: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    """The share w of each frame's valid numbers with the smallest |x0 − F|: bool like x0.

    The published index int(w·valid) + invalid − 1 into all numbers, of which the invalid ones come
    first. It is −1 for no valid number to replace in a frame without invalid ones: there Python
    takes the largest difference, and so replaces the whole frame; here nothing is.
    """
    off = (x0 - views).abs()
    count = valid.flatten(2).sum(2)
    taken = (weights * count).long()
    ranked = off.where(valid, off.new_tensor(-1.0)).flatten(2).sort(2).values
    place = taken + ranked.shape[2] - count - 1
    cutoff = ranked.gather(2, place.clamp(min=0)[..., None])[..., None, None]
    return valid & (off <= cutoff) & (taken > 0)[..., None, None, None]
