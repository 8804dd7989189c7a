"""Presets of speed: fewer steps, at the noise levels that suit the model."""

from __future__ import annotations

from collections.abc import Mapping

from undust.diffusion.process import VP
from undust.diffusion.schedules import listed
from undust.errors import UndustError, unknown
from undust.latent.model import LatentModel
from undust.recipe.request import Request

SPEEDS: Mapping[str, int | None] = {"exact": None, "balanced": 9, "fast": 4}
"""Steps of each preset; None for those of the request."""
FEW = 6  # steps; with fewer the default schedule of a process is far from the flow
PUBLISHED = "align-your-steps"


def with_speed(model: LatentModel, options: Request) -> Request:
    """The request with the steps and schedule of its preset.

    The schedule is one that was fitted to the model for so many steps, if it has one; else for few
    steps a published one. Raises UndustError for an unknown preset, and for steps or a schedule
    beside one.
    """
    speed = options.get("speed")
    if speed is None:
        return options
    if speed not in SPEEDS:
        raise unknown("speed", speed, SPEEDS)
    steps = SPEEDS[speed]
    if steps is None:
        return options
    for name in ("steps", "schedule"):
        if options.get(name) is not None:
            raise UndustError(f"{name}: the speed {speed} has its own; leave one of them out")
    chosen = options.copy()
    chosen["steps"] = steps
    fitted = [each for each in model.schedules if _steps(each) == steps]
    if fitted:
        chosen["schedule"] = fitted[0]
    elif steps < FEW and isinstance(model.process, VP):
        chosen["schedule"] = PUBLISHED
    return chosen


def _steps(schedule: str) -> int:
    """The steps of a list of σ."""
    levels = listed(schedule)
    return 0 if levels is None else len(levels) - 1
