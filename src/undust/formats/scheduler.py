"""scheduler_config.json ↔ the process and the prediction that a model was trained with.

Such a file also says how diffusers would sample. Sampling is the caller's choice here, so those
fields are accepted and play no part; a field that is not known could change the model's meaning and
is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from undust.diffusion.process import DISCRETE, VP, zero_terminal_snr
from undust.errors import UndustError
from undust.formats.files import shown

BETA_SCHEDULES = {  # diffusers' name -> ours
    "linear": "linear",
    "scaled_linear": "scaled-linear",
    "squaredcos_cap_v2": "cosine",
}
# The classes for which the fields below mean the discrete variance-preserving process.
CLASSES = tuple(
    f"{name}Scheduler"
    for name in """DDIM DDPM PNDM DEISMultistep DPMSolverMultistep DPMSolverSDE DPMSolverSinglestep
    EulerAncestralDiscrete EulerDiscrete HeunDiscrete KDPM2AncestralDiscrete KDPM2Discrete
    LMSDiscrete UniPCMultistep""".split()  # noqa: SIM905
)
# Their fields that say how to sample, not what was trained.
SAMPLING = frozenset(
    """algorithm_type clip_sample clip_sample_range disable_corrector dynamic_thresholding_ratio
    euler_at_final final_sigmas_type flow_shift interpolation_type lambda_min_clipped
    lower_order_final noise_sampler_seed predict_x0 sample_max_value set_alpha_to_one
    shift_terminal sigma_max sigma_min skip_prk_steps solver_order solver_p solver_type
    steps_offset thresholding time_shift_type timestep_spacing use_beta_sigmas
    use_exponential_sigmas use_karras_sigmas use_lu_lambdas variance_type""".split()  # noqa: SIM905
)
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")  # named alike there and here
Beta = Annotated[float, Field(gt=0, lt=1)]


class _SchedulerConfig(BaseModel):
    """The fields that say what was trained; the defaults are diffusers'."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_train_timesteps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    beta_schedule: str = "linear"
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02
    trained_betas: list[Beta] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    # What follows is not built here; only the neutral value passes.
    timestep_type: Literal["discrete"] = "discrete"
    use_flow_sigmas: Literal[False] = False
    use_dynamic_shifting: Literal[False] = False


def read_scheduler(fields: Mapping[str, Any], where: object) -> tuple[VP, str]:
    """The process, and the prediction's name, in a parsed scheduler_config.json of `where`.

    Raises UndustError, naming the field, for what cannot be represented.
    """
    if fields.get("_class_name") not in CLASSES:
        raise _unsupported(where, "_class_name", fields.get("_class_name"), CLASSES)
    known = {
        name: value
        for name, value in fields.items()
        if not name.startswith("_") and name not in SAMPLING
    }
    try:
        config = _SchedulerConfig.model_validate(known)
    except ValidationError as error:
        fault = error.errors()[0]
        raise UndustError(
            f"{where} ({fields['_class_name']}) is not supported: "
            f"{shown(fault['loc'][0])} = {fault['input']!r:.40}: {fault['msg']}"
        ) from error
    if config.prediction_type not in PREDICTION_TYPES:
        raise _unsupported(where, "prediction_type", config.prediction_type, PREDICTION_TYPES)
    if config.trained_betas is not None:
        if len(config.trained_betas) != config.num_train_timesteps:
            raise UndustError(
                f"{where} has {len(config.trained_betas)} trained_betas for "
                f"{config.num_train_timesteps} num_train_timesteps"
            )
        process = VP(torch.tensor(config.trained_betas, dtype=torch.float64))
    elif config.beta_schedule in BETA_SCHEDULES:
        build = DISCRETE[BETA_SCHEDULES[config.beta_schedule]]
        process = build(config.num_train_timesteps, config.beta_start, config.beta_end)
    else:
        raise _unsupported(where, "beta_schedule", config.beta_schedule, BETA_SCHEDULES)
    if config.rescale_betas_zero_snr:
        process = zero_terminal_snr(process)
    sigmas = process.sigmas
    if not bool((sigmas.diff(prepend=sigmas.new_zeros(1)) > 0).all() and sigmas.isfinite().all()):
        raise UndustError(f"{where} has betas that are too small or too large to tell steps apart")
    return process, config.prediction_type


def scheduler_config(process: VP, prediction: str) -> dict[str, Any]:
    """The scheduler_config.json with which diffusers' DDIM samples the model as `leading` + `ddim`.

    Betas that no schedule gives are written one by one. Raises UndustError for a prediction that
    diffusers does not know.
    """
    if prediction not in PREDICTION_TYPES:  # an error here, not at the one who loads the file
        raise _unsupported("scheduler_config.json", "prediction_type", prediction, PREDICTION_TYPES)
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": process.steps,
        **_betas(process),
        "prediction_type": prediction,
        "rescale_betas_zero_snr": False,
        "clip_sample": False,
        "thresholding": False,
        "set_alpha_to_one": True,  # the last step ends at σ = 0
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


def _betas(process: VP) -> dict[str, Any]:
    # Twelve digits: 0.00085 again, where squaring its root gave 0.0008499999999999999.
    start, end = (float(f"{process.betas[step].item():.12g}") for step in (0, -1))
    for theirs, ours in BETA_SCHEDULES.items():
        betas = DISCRETE[ours](process.steps, start, end).betas
        if torch.allclose(betas, process.betas, rtol=1e-9, atol=0):
            return {
                "beta_schedule": theirs,
                "beta_start": start,
                "beta_end": end,
                "trained_betas": None,
            }
    return {"trained_betas": process.betas.tolist()}


def _unsupported(where: object, field: str, value: object, known: Iterable[str]) -> UndustError:
    return UndustError(
        f"{where} is not supported: {field} = {value!r}; possible are {', '.join(known)}"
    )
