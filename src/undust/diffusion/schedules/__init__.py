"""Schedules: strictly falling lists of noise levels σ that end with 0.

Some place times (times.py), the others σ (levels.py, published.py). Other tools' "simple", "normal"
and "ddim-uniform" are trailing, linspace and leading up to rounding to integer time steps.
"""

from undust.diffusion.schedules import levels, published, times
from undust.diffusion.schedules.registry import SCHEDULES, Schedule, listed, schedule, sigmas

__all__ = ["SCHEDULES", "Schedule", "levels", "listed", "published", "schedule", "sigmas", "times"]
