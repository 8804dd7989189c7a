"""undust: complete latent diffusion. Importing it imports nothing heavy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from undust.version import __version__

if TYPE_CHECKING:
    from undust.errors import UndustError
    from undust.generation.loop import Picture, Step
    from undust.pipeline import LatentDiffusion, load
    from undust.recipe.recipe import Recipe
    from undust.video import VideoDiffusion, load_video

__all__ = [
    "LatentDiffusion",
    "Picture",
    "Recipe",
    "Step",
    "UndustError",
    "VideoDiffusion",
    "__version__",
    "load",
    "load_video",
]

_PLACES = {
    "LatentDiffusion": "undust.pipeline",
    "Picture": "undust.generation.loop",
    "Recipe": "undust.recipe.recipe",
    "Step": "undust.generation.loop",
    "UndustError": "undust.errors",
    "VideoDiffusion": "undust.video",
    "load": "undust.pipeline",
    "load_video": "undust.video",
}


def __getattr__(name: str) -> object:
    """Imports a public name, and torch with it, on first use (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'undust' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
