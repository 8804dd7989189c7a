"""From a picture back to its noise, and its likelihood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from undust.diffusion import inversion, likelihood
from undust.diffusion.schedules import SCHEDULES, sigmas
from undust.errors import UndustError
from undust.generation.guided import guided
from undust.generation.loop import Step
from undust.latent.model import LatentModel
from undust.recipe.recipe import Recipe

TOLERANCE = 1e-6  # of σ: a fixed point that moves by less has been reached


@torch.inference_mode()
def invert(
    model: LatentModel, batch: Sequence[Recipe], latents: Tensor, *, iterations: int = 1
) -> Iterator[Step]:
    """Walks Euler's steps of the recipes backwards from latents [B, C, h, w], step by step.

    iterations: the most a step may take; 1 is DDIM inversion, more make it exact while the guidance
    is weak (see `diffusion.inversion`). `noise` takes the last step.
    """
    first = batch[0]
    levels = sigmas(first.schedule, model.process, first.steps)
    denoise = guided(model, batch, levels)
    for step in inversion.invert(
        denoise, latents, levels, iterations=iterations, tolerance=TOLERANCE
    ):
        yield Step(step.index, first.steps, float(step.sigma), step.x, step.x0, model.decode)


def noise(model: LatentModel, last: Step) -> Tensor:
    """The unit-variance start [B, C, h, w] of pictures that were inverted up to this step."""
    return last.x / model.process.start(torch.ones(1), last.sigma)


def bits_per_dimension(
    model: LatentModel,
    batch: Sequence[Recipe],
    latents: Tensor,
    *,
    steps: int,
    probes: int,
    seed: int,
) -> Tensor:
    """How likely latents [B, C, h, w] are given the recipes' prompts: bits a number [B].

    Of the latents under the process's least noise, by `steps` steps of the classical Runge-Kutta
    method along the probability flow; `probes` random vectors, which `seed` fixes, estimate its
    divergence. The fewer bits, the likelier. Raises UndustError as `diffusion.likelihood` does, and
    for a self-conditioned model, whose estimates are no function of x and σ alone.
    """
    if model.self_conditioned:
        raise UndustError(f"{model.name} is self-conditioned: it has no probability flow")
    process = model.process
    levels = SCHEDULES["exponential"](process, steps + 1)[:-1]
    deviation = float(process.start(torch.ones(1), levels[0]))
    found = likelihood.log_likelihood(
        guided(model, batch, levels),
        latents,
        levels,
        likelihood.isotropic(deviation),
        probes=probes,
        key=seed,
    )
    return likelihood.bits_per_dimension(found, latents[0].numel())
