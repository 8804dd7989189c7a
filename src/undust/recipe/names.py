"""Names of samplers and schedules as fields of recipes."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES, listed


def _known_sampler(name: str) -> str:
    SAMPLERS[name]
    return name


def _known_schedule(schedule: str) -> str:
    if listed(schedule) is None:
        SCHEDULES[schedule]
    return schedule


SamplerName = Annotated[str, AfterValidator(_known_sampler)]
"""A sampler's name; UndustError for an unknown one."""

ScheduleName = Annotated[str, AfterValidator(_known_schedule)]
"""A schedule's name or a list of σ; UndustError for an unknown one."""
