"""A schedule for one model: fitted on some pictures, measured on others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from undust.diffusion.fitting import Fit, distance, fit, no_noise
from undust.diffusion.guidance import Run
from undust.diffusion.noise import PictureNoise
from undust.diffusion.process import Process
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError
from undust.generation.loop import Model
from undust.generation.recipe import Recipe
from undust.generation.scene import guided

GRID = 32  # levels even in log σ, and as many even in time, between which a schedule is sought
NEAR = 1e-3  # of a level: those nearer to the one above are left out
REFERENCE = 200  # steps of Heun's method that stand for the flow's true end


def published(process: Process, steps: int) -> dict[str, Tensor]:
    """Name → σ [steps + 1] of every schedule that has room for so many steps."""
    found: dict[str, Tensor] = {}
    for name, schedule in SCHEDULES.items():
        try:
            found[name] = schedule(process, steps)
        except UndustError:
            continue  # a table that ends sooner, or a formula without room
    return found


@torch.inference_mode()
def fit_schedule(model: Model, batch: Sequence[Recipe]) -> Iterator[Fit]:
    """Ever better schedules for the recipes' steps, sampler, guidance and prompts.

    The recipes have the same `settings`. Raises UndustError as `diffusion.fitting.fit` does.
    """
    first = batch[0]
    grid = _grid(model.process)
    denoise, x = _run(model, batch, grid)
    others = list(published(model.process, first.steps).values())
    yield from fit(denoise, x, grid, first.steps, sampler=first.sampler, others=others)


@torch.inference_mode()
def errors(
    model: Model, batch: Sequence[Recipe], schedules: Mapping[str, Tensor]
) -> dict[str, float]:
    """Name → `distance` of where each schedule's σ lead to from where the flow ends."""
    fine = SCHEDULES["exponential"](model.process, REFERENCE)
    denoise, x = _run(model, batch, fine)
    *_, true = SAMPLERS["heun"](denoise, x, fine, no_noise)
    found: dict[str, float] = {}
    for name, sigmas in schedules.items():
        denoise, x = _run(model, batch, sigmas)
        *_, last = SAMPLERS[batch[0].sampler](denoise, x, sigmas, no_noise)
        found[name] = distance(last.x, true.x)
    return found


def _run(model: Model, batch: Sequence[Recipe], sigmas: Tensor) -> tuple[Run, Tensor]:
    """The batch's denoiser and start, for one run along σ."""
    shape = model.latent_shape(batch[0].width, batch[0].height)
    start = PictureNoise([recipe.seed for recipe in batch], shape).start()
    return guided(model, batch, sigmas), model.process.start(start, sigmas[0])


def _grid(process: Process) -> Tensor:
    parts = [SCHEDULES[name](process, GRID)[:-1] for name in ("exponential", "trailing")]
    levels = torch.cat(parts).unique().flip(0)
    apart = levels[1:] < (1 - NEAR) * levels[:-1]
    return torch.cat([levels[:1], levels[1:][apart]])
