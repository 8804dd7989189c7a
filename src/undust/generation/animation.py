"""From a film's recipe to its frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from undust.diffusion.guidance import ClassifierFree, ConditionedDenoiser, Guidance, GuidedRun
from undust.diffusion.noise import BESIDE, BrownianPath, PictureNoise, normal
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import sigmas
from undust.errors import UndustError
from undust.generation.known_views import known_views, led
from undust.generation.loop import Step
from undust.latent.references import image_of
from undust.latent.video import VideoModel, unconditional
from undust.pictures import from_image, to_images
from undust.recipe.film import FilmRecipe


@dataclass(frozen=True)
class Film:
    """A finished film, its recipe, and the latents [F, C, h, w] it was decoded from."""

    frames: list[Image.Image]
    recipe: FilmRecipe
    latents: Tensor


@torch.inference_mode()
def sample_film(
    model: VideoModel, recipe: FilmRecipe, noise: Tensor | None = None
) -> Iterator[Step]:
    """Samples a film step by step; x and x0 of a step are [1, F, C, h, w].

    noise: unit-variance start [F, C, h, w] in place of the seed's. Raises UndustError for a size
    that the model cannot make, and for noise of another shape.
    """
    shape = recipe.frames, *model.latent_shape(recipe.width, recipe.height)
    picture = from_image(image_of(recipe.picture), (recipe.width, recipe.height))
    picture = picture[None].float() / 127.5 - 1
    drawn = (BrownianPath if SAMPLERS[recipe.sampler].path else PictureNoise)([recipe.seed], shape)
    unit = drawn.start() if noise is None else noise.float()[None]
    if unit.shape != (1, *shape):
        raise UndustError(f"noise: its shape is {[*unit.shape[1:]]}; here it has to be {[*shape]}")
    noise_on_it = normal(recipe.seed, (BESIDE, 0, 0), picture.shape)
    numbers = torch.tensor([[recipe.fps - 1.0, recipe.motion, recipe.noise_augmentation]])
    cond = model.condition(picture, noise_on_it, numbers, recipe.frames)
    positive, negative = (
        ConditionedDenoiser(model.denoise, each) for each in (cond, unconditional(cond))
    )
    scale = torch.linspace(*recipe.guidance, recipe.frames)
    levels = sigmas(recipe.schedule, model.process, recipe.steps)
    guided: Guidance = ClassifierFree(positive, negative, lambda _: scale)
    if recipe.known is not None:
        guided = led(guided, model, recipe.known, known_views(recipe, picture), levels)
    denoise = GuidedRun(guided)
    x = model.process.start(unit, levels[0])
    for step in SAMPLERS[recipe.sampler](denoise, x, levels, drawn):
        yield Step(
            step.index,
            recipe.steps,
            float(step.sigma),
            step.x,
            step.x0,
            lambda latents: model.decode(latents[0], recipe.decoded_frames),
        )


@torch.inference_mode()
def decode_film(recipe: FilmRecipe, last: Step) -> Film:
    """The film after its last step."""
    return Film(to_images(last.decode(last.x)), recipe, last.x[0])
