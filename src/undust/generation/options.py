"""A request to the recipes of its pictures."""

from __future__ import annotations

import math
import operator
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex, cast

from pydantic import BaseModel

from undust.adapters.token_merging import attentions
from undust.conditioning.prompt import foreign
from undust.diffusion.schedules import listed
from undust.errors import UndustError, quoted, unknown
from undust.generation.guided import refiner_model, resolve_guidance
from undust.generation.other_names import OTHER_NAMES
from undust.generation.speed import with_speed
from undust.generation.start import size_for
from undust.latent.model import LatentModel
from undust.latent.references import image_of, resolved_image, resolved_weights
from undust.networks.unet import AnyUNet
from undust.pictures import grey, has_hole, is_drawn_mask
from undust.recipe.files import ImageRef
from undust.recipe.guidance import read_guidance
from undust.recipe.inputs import (
    Control,
    Embedding,
    LoRA,
    Refiner,
    SizeConditioning,
    Upscale,
    read_extend,
)
from undust.recipe.recipe import Recipe
from undust.recipe.request import OPTIONS, SEEDS, Request, read_size
from undust.version import __version__

BYTE_ORDER_MARK = "\ufeff"  # at the beginning of many text files
NO_FIELDS = ("count", "seed", "size", "speed")  # options that a recipe has in another form
MAX_PIXEL_RATIO = 6  # of an init image to the training size; above it a note is given
NOISE_LEVEL = 20  # of the input of an upscaling model, in time steps, as published


def recipes(model: LatentModel, prompts: str | Sequence[str], options: Request) -> list[Recipe]:
    """A recipe for each picture: every prompt with the seeds `seed` … `seed + count − 1`.

    Raises UndustError for no prompts, for any value that cannot be, and for a file that cannot.
    """
    for name in options.keys() - OPTIONS.keys():
        elsewhere = {other: own for other, own in OTHER_NAMES.items() if own in OPTIONS}
        raise unknown("option", name, OPTIONS, elsewhere)
    options = with_speed(model, options)
    texts = _each(prompts) or ([] if model.texts else [""])
    if not texts:
        raise UndustError("no prompt: give one, such as 'a smiling cat'")
    if not all(isinstance(text, str) for text in texts):
        raise UndustError(f"prompt: has to be a text, or a list of texts, not {quoted(prompts)}")
    texts = [str(text).replace(BYTE_ORDER_MARK, "") for text in texts]
    if any(texts) and not model.texts:
        other = "; --label NAME is its class" if model.classes else ""
        raise UndustError(f"prompt: {model.name} takes no text{other}")
    count = _whole(options, "count", 1)
    if count < 1:
        raise UndustError(f"count: has to be at least 1, not {count}")
    seed = _whole(options, "seed", random.SystemRandom().randrange(2**32))
    if not 0 <= seed < SEEDS:
        raise UndustError(
            f"seed: has to be between 0 and {SEEDS - 1}, not {quoted(seed)}; leave it out for a "
            "random one"
        )
    fields = _settled(model, options)
    for note in _notes(model, [*texts, fields.get("negative", "")], fields):
        warnings.warn(note, UserWarning, stacklevel=3)
    return [
        Recipe.read(
            {
                **fields,
                "prompt": prompt,
                "seed": (seed + k) % SEEDS,
                "precision": model.precision,
                "engine": model.engine,
                "low_memory": model.low_memory,
                "model": model.name,
                "model_path": model.path,
                "vae": model.vae,
                "model_hash": model.hash,
                "undust": __version__,
            }
        )
        for prompt in texts
        for k in range(count)
    ]


def _notes(model: LatentModel, texts: Sequence[str], fields: Mapping[str, Any]) -> Iterator[str]:
    """Notes on options that are possible but probably a mistake, one line each."""
    more = (getattr(guide, "prompt", "") for guide in fields["guides"])
    yield from dict.fromkeys(note for text in (*texts, *more) for note in foreign(text))
    for embedding in fields["embeddings"]:
        if not any(embedding.word.lower() in text.lower() for text in texts):
            yield f"embedding: no prompt says '{embedding.word}', which it is for"
    guidance, scaled = (
        fields["guidance"],
        any(guide.method.role == "scale" for guide in fields["guides"]),
    )
    if isinstance(guidance, int | float) and 0 <= guidance < 1 and not scaled:
        counts = "counts for less" if guidance else "does not count"
        yield (
            f"guidance: at {guidance:g} the prompt {counts}; --guidance 1 is the prompt alone, "
            "which diffusers uses at 0 too"
        )
    if fields.get("mask_is_hole"):
        own = fields["mask"] is fields.get("init")
        instead = "without transparency all of it is begun from" if own else "else white is"
        yield f"the transparent part of the {'picture' if own else 'mask'} is repainted; {instead}"
    pixels, trained = fields["width"] * fields["height"], math.prod(model.size)
    if "init" in fields and model.low_res_process is None and pixels > MAX_PIXEL_RATIO * trained:
        width, height = model.size
        yield (
            f"the picture has {pixels / trained:.0f} times the pixels that the model was trained "
            f"on ({width}x{height}); a size can be given"
        )


def _mask(
    model: LatentModel, options: Request, begun: ImageRef | None
) -> tuple[ImageRef | None, bool]:
    """The mask, and whether its transparent part is the one to be repainted, as OpenAI has it.

    A picture with a hole and no mask is its own.
    """
    given = options.get("mask")
    if given is None:
        enlarged = model.low_res_process is not None or options.get("upscale") is not None
        hole = begun is not None and not enlarged and has_hole(image_of(begun))
        return (begun, True) if hole else (None, False)
    mask = resolved_image(ImageRef.of(given))
    image = image_of(mask)
    if has_hole(image) and not is_drawn_mask(image):
        return mask, True
    if options.get("extend") is None and grey(image).getextrema()[1] == 0:
        raise UndustError(
            "mask: nothing in it is white or transparent; those parts are repainted, black is kept"
        )
    return mask, False


def _each(given: object) -> list[object]:
    """One or several values as a list; a mapping is one."""
    if given is None:
        return []
    one = isinstance(given, str | Mapping | BaseModel) or not isinstance(given, Iterable)
    return [given] if one else list(cast("Iterable[object]", given))


def _whole(given: Mapping[str, object], name: str, default: int) -> int:
    """An option that is a whole number; UndustError for others."""
    number = given.get(name)
    try:
        return default if number is None else operator.index(cast("SupportsIndex", number))
    except TypeError:
        raise UndustError(f"{name}: has to be a whole number, not {quoted(number)}") from None


def _settled(model: LatentModel, options: Request) -> dict[str, Any]:
    """The fields that the recipes share, with references to files resolved."""
    given = cast("Mapping[str, object]", options)
    init, extend = (options.get(name) for name in ("init", "extend"))
    begun = None if init is None else resolved_image(ImageRef.of(init))
    mask, hole = _mask(model, options, begun)
    sides = None if extend is None else read_extend(extend)
    size = _size(model, options, begun, sides)
    model.latent_shape(*size)
    label, maps = options.get("label"), _each(given.get("maps"))
    if options.get("negative") and not model.texts:
        raise UndustError(f"negative: {model.name} takes no text")
    if label is not None and not model.classes:
        raise UndustError(f"label: {model.name} has no classes")
    if len(maps) != len(model.maps):
        kinds = ", ".join(kind.kind for kind in model.maps) or "none"
        raise UndustError(f"maps: {model.name} takes {kinds}; {len(maps)} given")
    if (options.get("deep_cache") or 1) != 1 and not isinstance(model.unet, AnyUNet):
        kind = type(model.unet).__name__
        raise UndustError(f"deep_cache: {model.name} has no U-Net, which it is for, but a {kind}")
    if options.get("token_merging"):
        attentions(model.unet)  # or an error
    upscale, refiner, framing = (options.get(name) for name in ("upscale", "refiner", "framing"))
    if isinstance(upscale, int | float):
        upscale = {"factor": upscale}
    framing = None if framing is None else SizeConditioning.read(framing)
    if framing is not None and not model.num_size_ids:
        raise UndustError(
            f"framing: {model.name} has no size conditioning, which Stable Diffusion XL has"
        )
    if not isinstance(given.get("negative"), str | None):
        raise UndustError(
            f"negative: one text goes with all prompts of a call, not {quoted(given['negative'])}"
        )
    guidance = options.get("guidance")
    negative = options.get("negative")
    fields: dict[str, Any] = {
        **{name: given.get(name) for name in OPTIONS if name not in NO_FIELDS},
        "negative": None if negative is None else negative.replace(BYTE_ORDER_MARK, ""),
        "guidance": model.guidance if guidance is None else guidance,
        **_sampling(model, given),
        "guides": [
            resolve_guidance(read_guidance(each), model, size)
            for each in _each(given.get("guides"))
        ],
        "label": None if label is None else model.classes[model.class_number(label)],
        "maps": [resolved_image(ImageRef.of(each)) for each in maps],
        "width": size[0],
        "height": size[1],
        "init": begun,
        "mask": mask,
        "mask_is_hole": hole or None,
        "extend": sides,
        "upscale": None if upscale is None else Upscale.read(upscale),
        "refiner": None if refiner is None else _refiner(model, Refiner.read(refiner)),
        "framing": framing,
        "loras": [resolved_weights(LoRA.read(each)) for each in _each(given.get("loras"))],
        "embeddings": [
            resolved_weights(Embedding.read(each)) for each in _each(given.get("embeddings"))
        ],
        "controls": [resolved_weights(Control.read(each)) for each in _each(given.get("controls"))],
    }
    if model.low_res_process is not None and begun is not None and fields["noise_level"] is None:
        fields["noise_level"] = NOISE_LEVEL
    level, most = fields["noise_level"], model.max_noise_level
    if isinstance(level, int) and level > most and model.low_res_process is not None:
        raise UndustError(f"noise level: {model.name} was trained with at most {most}, not {level}")
    return {name: value for name, value in fields.items() if value is not None}


def _sampling(model: LatentModel, given: Mapping[str, object]) -> dict[str, object]:
    """Steps, sampler and schedule as given, else those that the model was distilled for."""
    names = ("steps", "sampler", "schedule")
    found = {name: given[name] for name in names if given.get(name) is not None}
    own, usual = model.sampling, model.process.default_schedule
    if own is None or "schedule" in found:
        return {**({"sampler": own.sampler} if own else {}), "schedule": usual, **found}
    levels = listed(own.schedule)
    fits = levels is None or found.get("steps", own.steps) == len(levels) - 1
    defaults = {"steps": own.steps, "sampler": own.sampler}
    return {**defaults, "schedule": own.schedule if fits else usual, **found}


def _size(
    model: LatentModel,
    options: Request,
    begun: ImageRef | None,
    extend: tuple[int, ...] | None,
) -> tuple[int, int]:
    size = options.get("size")
    if size is not None and extend is not None:
        raise UndustError(
            "size: leave it out; with extend it is that of the picture and its extension"
        )
    if size is not None:
        return read_size(size)
    if begun is None:
        return model.size
    image = image_of(begun)
    if model.low_res_process is not None:
        return image.width * model.downsampling_factor, image.height * model.downsampling_factor
    return size_for(image, extend, model.downsampling_factor)


def _refiner(model: LatentModel, refiner: Refiner) -> Refiner:
    return refiner.model_copy(update={"model_hash": refiner_model(model, refiner).hash})
