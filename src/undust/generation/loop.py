"""The one loop from recipes to pictures: library, command line and training previews run it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from undust.diffusion.interpolation import NoiseBetween
from undust.diffusion.noise import BrownianPath, PictureNoise
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import sigmas
from undust.errors import UndustError
from undust.formats.files import expanded, make_folder
from undust.formats.recipe_png import check_name, write_picture
from undust.generation.guided import guided, parts, resolve_guidance, with_adapters
from undust.generation.start import StartState, prepared
from undust.latent.model import LatentModel
from undust.pictures import grid, resized, to_images
from undust.recipe.files import ImageRef
from undust.recipe.recipe import Recipe

MAX_BATCH_PIXELS = 8 * 512 * 512  # of the pictures in one batch


@dataclass(frozen=True)
class Step:
    """One step of a batch: x [B, C, h, w] is the latent after it, at level σ; x0 the estimate."""

    index: int
    total: int
    sigma: float
    x: Tensor
    x0: Tensor
    decode: Callable[[Tensor], Tensor]

    def preview(self) -> Image.Image:
        """The decoded estimates, side by side."""
        return grid(to_images(self.decode(self.x0)), gap=0)


@dataclass(frozen=True)
class Picture:
    """A finished picture, its recipe, and the latent [C, h, w] it was decoded from."""

    image: Image.Image
    recipe: Recipe
    latent: Tensor

    def save(self, path: Path | str) -> Path:
        """Writes the picture with its recipe inside, whole or not at all; makes the folder.

        As PNG, JPEG or WebP, by the name. Raises UndustError for the name of another kind of
        picture, and for what cannot be written.
        """
        path = expanded(path)
        check_name(path)
        make_folder(path.parent)
        write_picture(path, self.image, self.recipe.model_dump())
        return path


def batches(
    model: LatentModel, recipes: Iterable[Recipe], *, exact: bool = False
) -> Iterator[list[Recipe]]:
    """Recipes in batches, in order, each with its batch size and its place.

    The prompts of a batch have the same number of tokens and one negative prompt: no picture
    depends on another's prompts. With exact, and with an adaptive sampler, every picture is alone.
    Raises UndustError for files that have changed or do not fit the model.
    """
    for waiting in _alike(model, recipes):
        pixels = math.prod(waiting[0].final_size)
        # An adaptive sampler amplifies rounding: whether it takes a step hangs on the last bits.
        alone = exact or SAMPLERS[waiting[0].sampler].adaptive
        size = 1 if alone else max(1, min(MAX_BATCH_PIXELS // pixels, 64))
        for start in range(0, len(waiting), size):
            part = waiting[start : start + size]
            yield [
                recipe.model_copy(update={"batch": len(part), "place": place})
                for place, recipe in enumerate(part)
            ]


def _alike(model: LatentModel, recipes: Iterable[Recipe]) -> Iterator[list[Recipe]]:
    """Consecutive recipes with the same settings, negative prompt and numbers of tokens."""
    for _, group in groupby(recipes, key=lambda recipe: (recipe.settings, recipe.negative)):
        waiting = list(group)
        adapted = with_adapters(model, waiting[0])  # a learnt word may come to many tokens
        for _, same in groupby(waiting, key=partial(_token_counts, adapted)):
            yield list(same)


def _token_counts(model: LatentModel, recipe: Recipe) -> list[int]:
    prompts = (recipe.prompt, recipe.negative, recipe.toward and recipe.toward.prompt)
    return [model.conditioner.token_count(prompt) for prompt in prompts]


def rerun_batch(recipe: Recipe) -> list[Recipe]:
    """The batch of a picture, with the picture in every place of it."""
    if recipe.given_noise:
        raise UndustError("the picture was made from given noise, which is not in its file")
    return [recipe.model_copy(update={"place": place}) for place in range(recipe.batch)]


@torch.inference_mode()
def sample_batch(
    model: LatentModel, batch: Sequence[Recipe], noise: Tensor | None = None
) -> Iterator[Step]:
    """Samples one batch step by step; every recipe in it has the same `settings`.

    noise: unit-variance start [B, C, h, w] instead of the one drawn from the seeds.
    Raises UndustError for a size that the model cannot make, and for noise of another shape.
    """
    first = batch[0]
    model = with_adapters(model, first)
    shape = model.latent_shape(first.width, first.height)
    drawn = _noise(batch, shape)
    start = drawn.start() if noise is None else _batched(noise, len(shape))
    if start.shape != (len(batch), *shape):
        raise UndustError(
            f"noise: its shape is {list(start.shape)}; here it has to be {[len(batch), *shape]}"
        )
    step = None
    for step in _sample(model, batch, start, drawn, prepared(model, batch)):
        yield step
    if first.upscale is None or step is None:
        return
    pictures = step.decode(step.x0)
    size = first.upscale.size(pictures.shape[-1], pictures.shape[-2])
    larger = upscaled_recipes(batch, model, size)
    pictures = resized(pictures, size)
    drawn = _noise(larger, model.latent_shape(larger[0].width, larger[0].height))
    begun = prepared(model, larger, pictures)
    for again in _sample(model, larger, drawn.start(1), drawn, begun):
        yield replace(again, index=step.index + 1 + again.index, total=first.total_steps)


def _batched(noise: object, dimensions: int) -> Tensor:
    """Noise that was given, with a batch dimension before the `dimensions` of a picture's."""
    if not isinstance(noise, Tensor):
        raise UndustError(
            f"noise: has to be a tensor, not {type(noise).__name__}; torch.from_numpy makes one of "
            "an array"
        )
    return noise.float()[None] if noise.ndim == dimensions else noise.float()


def _sample(
    model: LatentModel,
    batch: Sequence[Recipe],
    unit: Tensor,
    drawn: PictureNoise | NoiseBetween,
    start: StartState,
) -> Iterator[Step]:
    """One pass from unit noise [B, C, h, w] to the last level."""
    first = batch[0]
    levels = sigmas(first.schedule, model.process, first.steps)[-first.first_pass_steps - 1 :]
    denoise = guided(model, batch, levels, start)
    x = start.noised(
        unit, model.process, levels[0], all_steps=first.first_pass_steps == first.steps
    )
    for step in SAMPLERS[first.sampler](denoise, x, levels, drawn):
        yield Step(
            step.index,
            first.total_steps,
            float(step.sigma),
            step.x,
            step.x0,
            lambda latents: start.finished(model.decode(latents)),
        )


@torch.inference_mode()
def decode(batch: Sequence[Recipe], last: Step) -> list[Picture]:
    """The pictures of a batch after its last step."""
    images = to_images(last.decode(last.x))
    return [
        Picture(image, recipe, latent)
        for image, recipe, latent in zip(images, batch, last.x, strict=True)
    ]


def upscaled_recipes(
    batch: Sequence[Recipe], model: LatentModel, size: tuple[int, int]
) -> list[Recipe]:
    """The recipes of the second pass for pictures of that size, rounded up to a possible one."""
    upscale = batch[0].upscale
    if upscale is None:
        return list(batch)
    width, height = (
        -(-side // model.downsampling_factor) * model.downsampling_factor for side in size
    )
    init = ImageRef(path="")
    guides = tuple(resolve_guidance(guide, model, (width, height)) for guide in batch[0].guides)
    return [
        recipe.model_copy(
            update={
                "width": width,
                "height": height,
                "init": init,
                "guides": guides,
                "strength": upscale.strength,
                "upscale": None,
            }
        )
        for recipe in batch
    ]


def _noise(batch: Sequence[Recipe], shape: Sequence[int]) -> PictureNoise | NoiseBetween:
    """The noise of the batch's seeds, interpolated between two seeds where a recipe says so."""
    source = BrownianPath if SAMPLERS[batch[0].sampler].path else PictureNoise
    seeds = [recipe.seed for recipe in batch]
    toward = [recipe.toward.seed if recipe.toward else recipe.seed for recipe in batch]
    drawn = source(seeds, shape)
    return drawn if toward == seeds else NoiseBetween(drawn, source(toward, shape), parts(batch))
