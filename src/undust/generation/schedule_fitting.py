"""A schedule for one model: searched on some pictures, chosen on others, measured on a third part.

The search would in the end fit its own pictures alone. So whatever it finds is measured on held-out
pictures as well: these decide when it stops, and whether what it found or a published schedule is
taken. Figures are of pictures that took no part in either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from undust.diffusion.fitting import GAIN, distances, fit, no_noise
from undust.diffusion.noise import PictureNoise
from undust.diffusion.process import Process
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.samplers.registry import Denoise
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError
from undust.generation.guided import guided
from undust.generation.loop import batches
from undust.latent.model import LatentModel
from undust.recipe.recipe import Recipe

GRID = 32  # levels even in log σ, and as many even in time, between which a schedule is sought
NEAR = 1e-3  # of a level: those nearer to the one above are left out
REFERENCE = 200  # steps of dpmpp-3m that stand for the flow's true end
PATIENCE = 12  # gains in a row on the searched pictures that are none on the held-out ones


@dataclass(frozen=True)
class Choice:
    """A schedule, σ [steps + 1], and the mean `distance` of the held-out pictures with it.

    name: of a published one, else ""; calls: network calls until now for each searched picture.
    """

    sigmas: Tensor
    error: float
    name: str
    calls: int


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
def fit_schedule(
    model: LatentModel, searched: Sequence[Recipe], held_out: Sequence[Recipe], *, calls: int
) -> Iterator[Choice]:
    """Ever better schedules for the recipes' steps, sampler and guidance; the last is the answer.

    The recipes, which have the same `settings`, differ in prompts and seeds. The first choice is
    the best published schedule; another is chosen if it is nearer by a share of GAIN on the
    held-out pictures. The search ends when it has called the network `calls` times for each
    searched picture, when nothing is better, or when its gains are none on the held-out pictures
    PATIENCE times in a row. Raises UndustError as `diffusion.fitting.fit` does.
    """
    first = searched[0]
    known = published(model.process, first.steps)
    held = Measure(model, held_out)
    means = {name: held.mean(sigmas) for name, sigmas in known.items()}
    name = min(means, key=means.__getitem__)
    best = Choice(known[name], means[name], name, 0)
    yield best
    grid = _grid(model.process)
    denoise, x = _run(model, searched, grid)
    seen, stale = [*known.values()], 0
    for found in fit(denoise, x, grid, first.steps, sampler=first.sampler, others=seen):
        if found.calls > calls:
            break
        best = replace(best, calls=found.calls)
        if not any(torch.equal(found.sigmas, sigmas) for sigmas in seen):
            seen = [*known.values(), found.sigmas]
            error = held.mean(found.sigmas)
            stale += 1
            if error < (1 - GAIN) * best.error:
                best, stale = Choice(found.sigmas, error, "", found.calls), 0
        yield best
        if stale == PATIENCE:
            break


class Measure:
    """How far from where the flow ends schedules lead, on pictures with the same `settings`."""

    @torch.inference_mode()
    def __init__(self, model: LatentModel, batch: Sequence[Recipe]) -> None:
        self.model, self.batch = model, batch
        fine = SCHEDULES["exponential"](model.process, REFERENCE)
        self.end = self._end("dpmpp-3m", fine)

    @torch.inference_mode()
    def distances(self, sigmas: Tensor) -> Tensor:
        """Of each picture [B], by the recipes' sampler along sigmas."""
        return distances(self._end(self.batch[0].sampler, sigmas), self.end)

    def mean(self, sigmas: Tensor) -> float:
        """The mean distance."""
        return float(self.distances(sigmas).mean())

    def _end(self, sampler: str, sigmas: Tensor) -> Tensor:
        denoise, x = _run(self.model, self.batch, sigmas)
        *_, last = SAMPLERS[sampler](denoise, x, sigmas, no_noise)
        return last.x


def _run(model: LatentModel, batch: Sequence[Recipe], sigmas: Tensor) -> tuple[Denoise, Tensor]:
    """The pictures' denoiser, which calls the network for as many as fit in memory, and start."""
    shape = model.latent_shape(batch[0].width, batch[0].height)
    start = PictureNoise([recipe.seed for recipe in batch], shape).start()
    parts = [*batches(model, batch)]
    sizes, runs = [len(part) for part in parts], [guided(model, part, sigmas) for part in parts]

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        split = zip(runs, x.split(sizes), sigma.split(sizes), strict=True)
        return torch.cat([run(of_part, level) for run, of_part, level in split])

    return denoise, model.process.start(start, sigmas[0])


def _grid(process: Process) -> Tensor:
    parts = [SCHEDULES[name](process, GRID)[:-1] for name in ("exponential", "trailing")]
    levels = torch.cat(parts).unique().flip(0)
    apart = levels[1:] < (1 - NEAR) * levels[:-1]
    return torch.cat([levels[:1], levels[1:][apart]])
