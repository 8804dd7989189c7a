"""The steps that a distilled model is for, in its folder.

diffusers' pipelines find them in the scheduler's configuration, but for their number; for that, and
for other processes, there is an entry of ours in model_index.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError

from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES, listed
from undust.errors import UndustError, demand
from undust.formats.components import SamplingDefaults
from undust.formats.scheduler import CONSISTENCY_CLASSES

ENTRY = "_sampling"  # diffusers ignores entries with "_"
PUBLISHED_STEPS = 4  # of distilled models (Luo et al. 2023, Zheng et al. 2024)
DISCRETE = "DDIMScheduler"  # as which a discrete process is written
ORIGIN = 50  # the levels of LCM's distillation, of which its scheduler chooses (Luo et al. 2023)
_SAMPLING = TypeAdapter(SamplingDefaults)


def read(index: Mapping[str, Any], scheduler: Mapping[str, Any]) -> SamplingDefaults | None:
    """The entry of a model_index.json, else the usual steps of a scheduler for distilled models.

    Raises UndustError for another entry than of a sampler, a schedule and steps.
    """
    if ENTRY not in index:
        name = scheduler.get("_class_name")
        if name not in CONSISTENCY_CLASSES:
            return None
        return SamplingDefaults(name.removesuffix("Scheduler").lower(), "trailing", PUBLISHED_STEPS)
    try:
        found = _SAMPLING.validate_python(index[ENTRY])
        SAMPLERS[found.sampler]
        levels = listed(found.schedule)
        if levels is None:
            SCHEDULES[found.schedule]
        elif len(levels) != found.steps + 1:
            raise UndustError(f"{len(levels) - 1} σ are listed, for {found.steps} steps")
    except ValidationError as error:
        fault = error.errors()[0]
        key = "".join(f"{each} " for each in fault["loc"])
        raise UndustError(f"{ENTRY}: {key}{demand(fault)}") from None
    except UndustError as error:
        raise UndustError(f"{ENTRY}: {error}") from None
    if not 0 < found.steps <= 1000:
        raise UndustError(f"{ENTRY}: {found.steps} is not a number of steps")
    return found


def entry(sampling: SamplingDefaults) -> dict[str, Any]:
    """The entry of model_index.json."""
    return asdict(sampling)


def scheduler(config: Mapping[str, Any], sampling: SamplingDefaults | None) -> dict[str, Any]:
    """The scheduler_config.json of a model, for these steps if diffusers has them.

    They are DDIM's of the spacing trailing, or LCM's, which choose from every k-th time step: from
    so many that they are those of trailing.
    """
    own = dict(config)
    if sampling is None or sampling.schedule != "trailing" or own["_class_name"] != DISCRETE:
        return own
    match sampling.sampler:
        case "ddim":
            return own | {"timestep_spacing": "trailing"}
        case "lcm":
            steps, times = sampling.steps, own["num_train_timesteps"]
            fitting = (each for each in range(ORIGIN, 0, -1) if times % each == 0 == each % steps)
            own |= {
                "_class_name": "LCMScheduler",
                "original_inference_steps": next(fitting, ORIGIN),
            }
            return own
        case _:
            return own
