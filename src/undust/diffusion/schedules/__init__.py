"""Which noise levels a sampler visits: a schedule is a strictly falling list of σ that ends with 0.

Some place times, evenly or not (times.py), the others σ itself (levels.py, published.py). What
other tools call "simple", "normal" and "ddim-uniform" are trailing, linspace and leading but for
how they round to whole time steps.
"""

from undust.diffusion.schedules import levels, published, times
from undust.diffusion.schedules.registry import SCHEDULES, Schedule, listed, schedule, sigmas

__all__ = ["SCHEDULES", "Schedule", "levels", "listed", "published", "schedule", "sigmas", "times"]
