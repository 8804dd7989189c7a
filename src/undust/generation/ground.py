"""What a pass paints over: nothing, a picture under dust, or one of which a part is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from undust.diffusion.noise import BESIDE, normal
from undust.diffusion.process import Process
from undust.errors import UndustError
from undust.generation.canvas import Canvas, Sides, canvas, cut
from undust.pictures import from_image

if TYPE_CHECKING:
    from undust.generation.recipe import Recipe
    from undust.latent.model import LatentModel


@dataclass(frozen=True)
class Ground:
    """What there is before the first step.

    begin: latents [1 or B, C, h, w] that are begun from; unknown: [h, w], where of them not, 1, for
    a model that does not itself see the mask; beside: [1 or B, C, h, w], what the network sees
    beside the latent; label: its class, such as the noise level of what it sees; canvas: what the
    finished pictures are put back into; frame: what is cut off of them.
    """

    begin: Tensor | None = None
    unknown: Tensor | None = None
    beside: Tensor | None = None
    label: int | None = None
    canvas: Canvas | None = None
    frame: Sides = (0, 0, 0, 0)

    def under(self, start: Tensor, process: Process, sigma: Tensor, *, whole: bool) -> Tensor:
        """Where the pass begins, x [B, C, h, w] at level σ, of unit noise.

        whole: nothing of the picture that is begun from is left, but for what of it is known.
        """
        noise = process.start(start, sigma)
        if self.begin is None or (whole and self.unknown is None):
            return noise
        over = self.begin + sigma.to(start) * start
        return over if not whole or self.unknown is None else over.lerp(noise, self.unknown)

    def finished(self, painted: Tensor) -> Tensor:
        """Painted pictures [B, 3, H, W] as they are shown."""
        return cut(painted if self.canvas is None else self.canvas.finished(painted), self.frame)


def prepared(model: LatentModel, batch: Sequence[Recipe], painted: Tensor | None = None) -> Ground:
    """The ground for a batch, whose recipes have the same `settings`.

    painted: pictures [B, 3, H, W] in [-1, 1] of a pass before, to paint over, at most as large as
    the recipe says; they are filled up with their own edge, and shown without that.
    Raises UndustError for a recipe that lacks, or has, a picture that the model needs, or cannot
    use.
    """
    recipe = batch[0]
    if model.low_res_process is not None:
        return _to_enlarge(model, model.low_res_process, batch)
    if recipe.noise_level is not None:
        raise UndustError(f"noise level: {recipe.model} is no model that makes pictures larger")
    if painted is not None:
        frame = 0, 0, recipe.width - painted.shape[-1], recipe.height - painted.shape[-2]
        begin = model.encode(F.pad(painted, (0, frame[2], 0, frame[3]), "replicate"))
        return Ground(begin, beside=_beside(model, None, recipe), frame=frame)
    over = canvas(recipe, model.downsampling_factor)
    beside = _beside(model, over, recipe)
    if over is None:
        return Ground(beside=beside)
    begin = model.encode(over.picture)
    unknown = None
    if over.unknown is not None and (beside is None or recipe.refiner is not None):
        unknown = over.unknown_latent((begin.shape[-2], begin.shape[-1]))
    return Ground(begin, unknown, beside, canvas=over)


def _beside(model: LatentModel, over: Canvas | None, recipe: Recipe) -> Tensor | None:
    """What a model for repainting sees beside the latent: [1, 1 + C, h, w], or None for others.

    The mask, and the latent of the picture without what is masked, which is grey (Rombach et al.
    2022, section 4.5; the order is that of the published models).
    """
    if model.extra_channels == 0:
        return None
    channels, height, width = model.latent_shape(recipe.width, recipe.height)
    if model.extra_channels != 1 + channels:
        raise UndustError(
            f"the U-Net wants {model.extra_channels} channels beside the latent's {channels}"
        )
    if over is None or over.unknown is None:
        unknown = torch.ones(1, 1, height, width)
        seen = torch.zeros(1, 3, recipe.height, recipe.width)
    else:
        hidden = (over.unknown >= 0.5).float()
        unknown = F.interpolate(hidden[None, None], (height, width), mode="nearest")
        seen = over.picture * (1 - hidden)
    return torch.cat([unknown, model.encode(seen)], 1)


def _to_enlarge(model: LatentModel, process: Process, batch: Sequence[Recipe]) -> Ground:
    """A small picture under a little dust of its own, which the model sees beside the latent."""
    recipe = batch[0]
    if recipe.init is None or recipe.noise_level is None:
        raise UndustError(
            f"{recipe.model} only makes pictures larger, with generate: give it one to begin from "
            "(init)"
        )
    _, height, width = model.latent_shape(recipe.width, recipe.height)
    small = from_image(recipe.init.image(), (width, height)).float() / 127.5 - 1
    time = torch.tensor(recipe.noise_level)
    if not process.time_range[0] <= recipe.noise_level <= process.time_range[1]:
        raise UndustError(f"noise level: {recipe.noise_level} is outside {process.time_range}")
    dust = [normal(each.seed, (BESIDE, 0, 0), small.shape) for each in batch]
    alpha, deviation = process.alpha(time).float(), process.std(time).float()
    beside = torch.stack([alpha * small + deviation * each for each in dust])
    return Ground(beside=beside, label=recipe.noise_level)
