"""From what a person asks for to the recipes of the pictures."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from PIL import Image

from undust import __version__
from undust.errors import UndustError, quoted, unknown
from undust.generation.asked import (
    Control,
    Embedding,
    Framing,
    LoRA,
    Refiner,
    Upscale,
    read_extend,
)
from undust.generation.canvas import size_for
from undust.generation.given import GivenPicture
from undust.generation.guides import Guide, read_guide
from undust.generation.recipe import SEEDS, Recipe

if TYPE_CHECKING:
    from undust.generation.loop import Model

NOISE_LEVEL = 20  # of what is to be made larger, in time steps, as the published model has it
Some = Mapping[str, Any]


class Options(TypedDict, total=False):
    """What can be asked for beside the prompt. What is None, or left out, takes its default.

    negative: what to stay away from; None is nothing, which some models tell from "".
    steps, sampler: as a `Recipe` has them; guidance, schedule: likewise, or the model's own.
    guides: "apg:eta=0,norm=10" or such; see `undust guidances`. Their files are read here.
    seed: any, unless given. count: pictures a prompt, of seeds that follow one another.
    size: (width, height) or one number, pixels; that of the picture begun from, or as trained.
    init: a picture to begin from; strength: how much of the steps it is painted over with, 0 to 1.
    mask: a picture as large as it, white where it is painted anew. extend: pixels to add to it at
    the left, top, right and bottom. noise_level: for a model that makes the picture larger.
    upscale: a factor, or "2@0.3": a second pass over the picture made larger.
    refiner: "PATH@0.8", a model for the last steps. framing: what Stable Diffusion XL is told.
    clip_skip: layers of the text encoders to leave out. loras: "PATH:0.8" each.
    embeddings: "PATH=WORD" each. controls: "PATH=PICTURE@0.8:0-0.5" each.
    """

    negative: str | None
    steps: int | None
    guidance: float | None
    sampler: str | None
    schedule: str | None
    guides: Sequence[str | Some | Guide]
    seed: int | None
    size: tuple[int, int] | int | None
    count: int
    init: Image.Image | Path | str | None
    strength: float | None
    mask: Image.Image | Path | str | None
    extend: Sequence[int] | str | None
    noise_level: int | None
    upscale: float | str | Some | Upscale | None
    refiner: str | Some | Refiner | None
    framing: str | Some | Framing | None
    clip_skip: int | None
    loras: Sequence[str | Some | LoRA]
    embeddings: Sequence[str | Some | Embedding]
    controls: Sequence[str | Some | Control]


def recipes(model: Model, prompts: str | Sequence[str], options: Options) -> list[Recipe]:
    """A recipe for each picture: every prompt with the seeds `seed` … `seed + count − 1`.

    Raises UndustError for no prompts, for any value that cannot be, and for a file that cannot.
    """
    for name in options.keys() - Options.__annotations__.keys():
        raise unknown("option", name, Options.__annotations__)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    count = options.get("count", 1)
    if not prompts:
        raise UndustError("no prompt: say what to paint, such as 'a smiling cat'")
    if count < 1:
        raise UndustError(f"count: has to be at least 1, not {count}")
    seed = options.get("seed")
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    asked = _settled(model, options)
    return [
        Recipe.read(
            {
                **asked,
                "prompt": prompt,
                "seed": (seed + k) % SEEDS if 0 <= seed < SEEDS else seed,
                "precision": model.precision,
                "model": model.name,
                "model_hash": model.hash,
                "undust": __version__,
            }
        )
        for prompt in prompts
        for k in range(count)
    ]


def _settled(model: Model, options: Options) -> dict[str, Any]:
    """The fields that the recipes share, with what is in the files that are named."""

    def several(name: Literal["guides", "loras", "embeddings", "controls"]) -> Iterable[object]:
        given = options.get(name, ())
        return [given] if isinstance(given, str) else given

    init, mask, extend = (options.get(name) for name in ("init", "mask", "extend"))
    begun = None if init is None else GivenPicture.of(init)
    sides = None if extend is None else read_extend(extend)
    size = _size(model, options, begun, sides)
    model.latent_shape(*size)
    upscale, refiner, framing = (options.get(name) for name in ("upscale", "refiner", "framing"))
    if isinstance(upscale, int | float):
        upscale = {"factor": upscale}
    framing = None if framing is None else Framing.read(framing)
    if framing is not None and not model.sizes:
        raise UndustError(f"framing: {model.name} is not told of sizes; Stable Diffusion XL is")
    guidance, schedule = options.get("guidance"), options.get("schedule")
    fields: dict[str, Any] = {
        **{name: options.get(name) for name in ("negative", "steps", "sampler")},
        **{name: options.get(name) for name in ("strength", "noise_level", "clip_skip")},
        "guidance": model.guidance if guidance is None else guidance,
        "schedule": model.process.default_schedule if schedule is None else schedule,
        "guides": [read_guide(each).settle(model, size) for each in several("guides")],
        "width": size[0],
        "height": size[1],
        "init": begun,
        "mask": None if mask is None else GivenPicture.of(mask),
        "extend": sides,
        "upscale": None if upscale is None else Upscale.read(upscale),
        "refiner": None if refiner is None else _refiner(model, Refiner.read(refiner)),
        "framing": framing,
        "loras": [LoRA.read(each).settle() for each in several("loras")],
        "embeddings": [Embedding.read(each).settle() for each in several("embeddings")],
        "controls": [Control.read(each).settle() for each in several("controls")],
    }
    if model.low_resolution is not None and begun is not None and fields["noise_level"] is None:
        fields["noise_level"] = NOISE_LEVEL
    return {name: value for name, value in fields.items() if value is not None}


def _size(
    model: Model,
    options: Options,
    begun: GivenPicture | None,
    extend: tuple[int, ...] | None,
) -> tuple[int, int]:
    size = options.get("size")
    if size is not None and extend is not None:
        raise UndustError("size: what a picture is extended by says how large it is; leave it out")
    match size:
        case None:
            pass
        case int(side):
            return side, side
        case (int(width), int(height)):
            return width, height
        case _:
            raise UndustError(f"size: {quoted(size)} is neither (width, height) nor one number")
    if begun is None:
        return model.size
    image = begun.image()
    if model.low_resolution is not None:
        return image.width * model.factor, image.height * model.factor
    return size_for(image, extend, model.factor)


def _refiner(model: Model, asked: Refiner) -> Refiner:
    return asked.model_copy(update={"model_hash": asked.found(model).hash})
