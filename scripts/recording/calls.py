"""Every call into undust that `scripts/recorded` makes; renamed functions are followed here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import undust
from undust.cli import main as command_line
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES
from undust.diffusion.weighting import WEIGHTINGS
from undust.errors import UndustError
from undust.formats.components import save_component
from undust.formats.original.variants import VARIANTS
from undust.training.kinds import read as read_recipe
from undust.training.run import train
from variants import build, build_control

__all__ = ["SAMPLERS", "SCHEDULES", "VARIANTS", "WEIGHTINGS", "UndustError", "command_line"]

BUILT_IN = "emoji"
load = cache(undust.load)


def sampled(model: str, prompts: Any, options: Mapping[str, Any], **loaded: Any) -> list[Any]:
    """The pictures, each with `latent`, `image` and a recipe; loaded: options of `undust.load`."""
    return load(model, **loaded).generate(prompts, **options)


def plain_recipe(picture: Any) -> dict[str, Any]:
    return picture.recipe.model_dump(mode="json")


def write_model(variant: str, folder: Path) -> None:
    build(variant).save(folder)


def write_control(variant: str, folder: Path) -> None:
    save_component(folder, build_control(variant))


def trained(recipe: Path, changes: list[str], out: Path) -> list[dict[str, float]]:
    """Runs a training recipe, as `undust train` does; the losses of every step."""
    losses: list[dict[str, float]] = []
    if not train(read_recipe(recipe, changes), out, observe=lambda it: losses.append(it.losses)):
        raise KeyboardInterrupt  # a run ends by itself when it is asked to stop
    return losses


def calls_network(code: CodeType) -> bool:
    return code.co_qualname == "UNet.forward"
