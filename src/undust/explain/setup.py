"""What the parts of an explanation are shown on: a model, prompts, seeds and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Unpack

import torch
from PIL import Image
from torch import Tensor

from undust.diffusion.process.base import SIGMA_INF
from undust.diffusion.schedules import sigmas
from undust.errors import UndustError
from undust.explain.texts import PartTexts, Translation
from undust.generation import loop
from undust.generation.loop import Step
from undust.networks.base import DenoiserNetwork
from undust.pictures import grid, to_images
from undust.pipeline import LatentDiffusion
from undust.recipe.recipe import Recipe
from undust.recipe.request import Request

ENLARGED = 128  # pixels, the shorter side of a picture that is shown; smaller ones are enlarged
ROW = 6  # pictures in a row at most
NetworkChange = Callable[[DenoiserNetwork], DenoiserNetwork]


@dataclass(frozen=True)
class Sampled:
    """Latents [B, C, h, w], their pictures [B, 3, H, W], and each step on the way."""

    latents: Tensor
    pictures: Tensor
    steps: Sequence[Step]


@dataclass(frozen=True, eq=False)
class Setup:
    """A model with the prompts and seeds that its parts are shown on.

    prompts: one for each seed, and they may all be the same; pictures: real ones [N, 3, H, W] in
    [-1, 1], of the size that the model makes; steps, guidance: of all generations, unless a part
    varies them.
    """

    model: LatentDiffusion
    prompts: Sequence[str]
    seeds: Sequence[int]
    pictures: Tensor
    texts: Translation
    steps: int
    guidance: float

    def __post_init__(self) -> None:
        assert len(self.prompts) == len(self.seeds) > 1

    def say(self, part: str) -> PartTexts:
        """The texts of a part, in the language that was asked for."""
        return self.texts.part(part)

    def recipes(
        self, prompts: Sequence[str] | None = None, **options: Unpack[Request]
    ) -> list[Recipe]:
        """A recipe for each seed; what is not given is as the setup has it."""
        found: list[Recipe] = []
        for prompt, seed in zip(prompts or self.prompts, self.seeds, strict=True):
            asked: Request = {
                "steps": self.steps,
                "guidance": self.guidance,
                **options,
                "seed": seed,
            }
            found += self.model.recipes(prompt, **asked)
        return found

    @torch.inference_mode()
    def sample(
        self,
        change: NetworkChange | None = None,
        prompts: Sequence[str] | None = None,
        **options: Unpack[Request],
    ) -> Sampled:
        """A picture for each seed, in one batch; change: of the network, as `with_network` has."""
        model = self.model if change is None else self.model.with_network(change)
        recipes = self.recipes(prompts, **options)
        steps = [*loop.sample_batch(model, recipes)]
        return Sampled(steps[-1].x, steps[-1].decode(steps[-1].x), steps)

    @cached_property
    def baseline(self) -> Sampled:
        """The pictures of the unchanged model."""
        return self.sample()

    def levels(self, steps: int | None = None) -> Tensor:
        """The noise levels σ of a generation, float64 [steps + 1], the last one 0."""
        first = self.recipes(steps=steps or self.steps)[0]
        return sigmas(first.schedule, self.model.process, first.steps)

    def level(self, sigma: float) -> str:
        """σ for people."""
        return "∞" if sigma > SIGMA_INF / 2 else f"{sigma:.2g}"

    @cached_property
    def latents(self) -> Tensor:
        """The means of the real pictures' latents [N, C, h, w]."""
        with torch.inference_mode():
            return self.model.encode(self.pictures)

    @torch.inference_mode()
    def estimate(
        self,
        x: Tensor,
        sigma: float,
        change: NetworkChange | None = None,
        prompts: Sequence[str | None] | None = None,
    ) -> Tensor:
        """The denoiser's x0 of noisy latents x [B, C, h, w] at level σ, without guidance.

        prompts: one for each; without them, for no prompt. Raises UndustError as `check_inputs`.
        """
        self.check_inputs()
        model = self.model if change is None else self.model.with_network(change)
        cond = model.condition(prompts or [None] * len(x))
        return model.denoise(x, torch.full((len(x),), sigma, dtype=torch.float64), cond).float()

    def check_latents(self) -> None:
        """Raises UndustError for a model whose latents are the pictures themselves."""
        if self.model.first_stage.downsampling_factor == 1:
            raise UndustError(
                "explain: this part is about the space of latents, and this model works on pixels"
            )

    def check_inputs(self) -> None:
        """Raises UndustError for a model that needs more than noise and a prompt."""
        if self.model.extra_channels or self.model.maps:
            raise UndustError(
                "explain: this part gives the network noise and a prompt; this model also needs a "
                "picture (to repaint or enlarge, or a map)"
            )

    @property
    def drawn(self) -> int:
        """The number of generated pictures in a row of a figure."""
        return min(len(self.seeds), ROW)

    @property
    def shown(self) -> int:
        """The number of real pictures in a row of a figure."""
        return min(len(self.seeds), len(self.pictures), ROW)

    def noise(self, like: Tensor, seed: int) -> Tensor:
        """Unit normal noise of the shape of `like`, by a seed."""
        return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))

    def row(self, pictures: Tensor, columns: int | None = None) -> Image.Image:
        """Pictures [B, 3, H, W] side by side, as figures show them."""
        images = to_images(pictures)
        return grid([enlarged(image) for image in images], columns or len(images))


def enlarged(image: Image.Image, side: int = ENLARGED) -> Image.Image:
    """Small pictures by a whole factor, pixels as squares, so that their shorter side is `side`."""
    factor = side // min(image.size)
    if factor <= 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
