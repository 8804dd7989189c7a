"""Loads a model for a command that generates."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undust.cli import console
from undust.errors import UndustError

if TYPE_CHECKING:
    from undust.pipeline import LatentDiffusion
    from undust.recipe.recipe import Recipe


def opened_model(name_or_path: str, **options: Any) -> LatentDiffusion:
    """As `undust.load`, after `use_free_cores`; says where the first step will take long."""
    from undust import pipeline
    from undust.engines.registry import ENGINES

    use_free_cores()
    model = pipeline.load(name_or_path, **options)
    if why := ENGINES[model.engine].at_first:
        console.note(f"the first step takes longer, a minute for large models: {why}")
    return model


def use_free_cores() -> None:
    """Uses one thread where other programs make several slower, and says so."""
    from undust.engines.threads import avoid_waiting

    if avoid_waiting():
        console.note("one thread: several are slower at the moment, beside other programs")


def model_of(recipe: Recipe, made: Path, instead: str = "say where it is with --model") -> str:
    """Where the model of a picture is: inside undust, where it was, or beside the file `made`.

    instead: advice for the UndustError if it is at no such place.
    """
    from undust.formats.hub import is_name
    from undust.formats.locate import built_in, find
    from undust.recipe.files import is_there

    was = recipe.model_path
    names = [Path(was).name, recipe.model, f"{recipe.model}.safetensors"]
    places = [was, *(str(made.parent / name) for name in names if name)]
    if not was and recipe.model in built_in():
        return recipe.model
    for place in filter(is_there, filter(None, places)):
        return place
    if is_name(was.partition("@")[0]):
        with suppress(UndustError):
            find(was)
            return was
    raise UndustError(
        f"{made} was made with the model '{recipe.model}' ({recipe.model_hash}), which is "
        f"neither {was or 'inside undust'} nor beside it; {instead}"
    )
