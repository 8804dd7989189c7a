"""Loads a model for a command that generates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from undust.cli import console

if TYPE_CHECKING:
    from undust.pipeline import LatentDiffusion


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
