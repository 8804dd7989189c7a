"""A model for measurements of samplers, with fixed prompts and noise."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from undust.diffusion.fitting import no_noise
from undust.diffusion.noise import BrownianPath
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.samplers.registry import Denoise, Noise
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError
from undust.generation.guided import guided
from undust.pipeline import LatentDiffusion

PROMPTS = (
    "red heart",
    "rocket",
    "a smiling cat",
    "pizza",
    "sunflower",
    "guitar",
    "lion",
    "mermaid",
)
REFERENCE = "dpmpp-3m"  # of third order, at one network call a step


def end_of(
    name: str, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, **options: Any
) -> Tensor:
    """The final x of a sampler's run from x [B, …] at level sigmas[0]."""
    *_, last = SAMPLERS[name](denoise, x, sigmas, noise, **options)
    return last.x


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.calls = denoise, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The denoiser's estimate."""
        self.calls += 1
        return self.denoise(x, sigma)


class ModelUnderTest:
    """A model with recipes for several pictures: prompt k modulo their number, seed k.

    pictures: number of pictures. Raises UndustError for less than one.
    """

    def __init__(self, model: LatentDiffusion, pictures: int) -> None:
        if pictures < 1:
            raise UndustError(f"prompts: at least 1 is needed, not {pictures}")
        given = [(PROMPTS[seed % len(PROMPTS)], seed) for seed in range(pictures)]
        self.model = model
        self.recipes = [model.recipes(prompt, seed=seed)[0] for prompt, seed in given]
        first = self.recipes[0]
        seeds = range(pictures)
        self.path = BrownianPath(seeds, model.latent_shape(first.width, first.height))

    def noise(self, sampler: str) -> Noise:
        """The noise for a sampler: increments of a path for each picture, or `no_noise`."""
        return self.path if SAMPLERS[sampler].stochastic else no_noise

    def denoiser(self, sigmas: Tensor) -> Counted:
        """The guided denoiser for one run along sigmas."""
        return Counted(guided(self.model, self.recipes, sigmas))

    @torch.inference_mode()
    def run(self, sampler: str, sigmas: Tensor, **options: Any) -> tuple[Tensor, int]:
        """The final latents [B, C, h, w] and the number of denoiser calls."""
        denoise = self.denoiser(sigmas)
        x = self.model.process.start(self._start, sigmas[0])
        return end_of(sampler, denoise, x, sigmas, self.noise(sampler), **options), denoise.calls

    def levels(self, steps: int) -> Tensor:
        """The process's default schedule."""
        process = self.model.process
        return SCHEDULES[process.default_schedule](process, steps)

    @cached_property
    def _start(self) -> Tensor:
        return self.path.start()

    def state(self, sigma: float, steps: int = 50) -> Tensor:
        """Latents [B, C, h, w] at level σ of a sampling run."""
        levels = self.levels(steps)
        above = levels[levels > sigma]
        return self.run(REFERENCE, torch.cat([above, above.new_tensor([sigma])]))[0]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that measurements depend on."""
        first = self.recipes[0]
        return {
            "model": first.model,
            "model_hash": first.model_hash,
            "pictures": len(self.recipes),
            "guidance": first.guidance,
        }
