"""scheduler_config.json ↔ the process and the prediction that a model was trained with.

Such a file also says how diffusers would sample. Sampling is the caller's choice here, so those
fields are accepted and play no part; a field that is not known could change the model's meaning and
is refused.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from undust.diffusion.prediction import prediction_on
from undust.diffusion.process import (
    DISCRETE,
    EDM,
    PROCESSES,
    VP,
    Flow,
    Process,
    zero_terminal_snr,
)
from undust.errors import UndustError, demand, limit_entries, printable, quoted

BETA_SCHEDULES = {  # diffusers' name -> ours
    "linear": "linear",
    "scaled_linear": "scaled-linear",
    "squaredcos_cap_v2": "cosine",
}
# The classes that stand for the discrete variance-preserving process.
CLASSES = tuple(
    f"{name}Scheduler"
    for name in """DDIM DDPM PNDM DEISMultistep DPMSolverMultistep DPMSolverSDE DPMSolverSinglestep
    EulerAncestralDiscrete EulerDiscrete HeunDiscrete KDPM2AncestralDiscrete KDPM2Discrete
    LMSDiscrete UniPCMultistep LCM TCD SASolver DDIMParallel DDPMParallel""".split()  # noqa: SIM905
)
# Of these, those with Stable Diffusion's β, in part or whole, by default.
KARRAS_CLASSES = tuple(
    f"{name}Scheduler"
    for name in ("DPMSolverSDE", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete")
)
CONSISTENCY_CLASSES = ("LCMScheduler", "TCDScheduler")
# Those that also sample rectified flow, with `use_flow_sigmas`. The first one is written: unlike
# the classes below, it works in the pipelines of Stable Diffusion.
FLOW_SIGMAS = tuple(
    f"{name}Scheduler"
    for name in """DPMSolverMultistep DPMSolverSinglestep DEISMultistep UniPCMultistep
    SASolver""".split()  # noqa: SIM905
)
# Those for rectified flow, and those for EDM, of which the first one is written.
FLOW_CLASSES = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
EDM_CLASSES = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
CONTINUOUS = "continuous"  # of EulerDiscreteScheduler: time steps are ¼·log σ
OWN_CLASS = "NoiseProcess"  # of ours: what no scheduler of diffusers stands for
# Fields that only affect sampling, unless they are fields of a process below.
SAMPLING = frozenset(
    """algorithm_type base_image_seq_len base_shift clip_sample clip_sample_range corrector_order
    denoise_final disable_corrector dynamic_thresholding_ratio euler_at_final final_sigmas_type
    interpolation_type lambda_min_clipped lower_order_final max_image_seq_len max_shift
    noise_sampler_seed num_train_timesteps original_inference_steps predict_x0 predictor_order rho
    sample_max_value set_alpha_to_one shift_terminal sigma_max sigma_min sigma_schedule
    skip_prk_steps solver_order solver_p solver_type steps_offset stochastic_sampling tau_func
    tensor_format thresholding time_shift_type timestep_scaling timestep_spacing timestep_values
    use_beta_sigmas use_exponential_sigmas use_karras_sigmas use_lu_lambdas
    variance_type""".split()  # noqa: SIM905
)
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")  # named alike there and here
FLOW_PREDICTIONS = {"flow": "flow_prediction", "sample": "sample"}  # ours -> theirs
# What diffusers' EDM calls ε is F; v is −F of pictures scaled to deviation 1.
EDM_PREDICTIONS = {"edm": "epsilon", "v_prediction": "v_prediction"}  # ours -> theirs
MAX_STEPS = 100_000
Steps = Annotated[int, Field(ge=2, le=MAX_STEPS)]
Beta = Annotated[float, Field(gt=0, lt=1)]
Sigma = Annotated[float, Field(ge=1e-9, le=1e9)]  # its square is a number in float32 too
Shift = Annotated[float, Field(ge=Flow.MIN_SHIFT, le=Flow.MAX_SHIFT)]


class _Config(BaseModel):
    """The fields of the training process; the defaults are diffusers'."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @abstractmethod
    def read(self) -> tuple[Process, str]:
        """The process and the prediction's name; UndustError if they cannot be represented."""
        ...


class _Discrete(_Config):
    num_train_timesteps: Steps = 1000
    beta_schedule: str = "linear"
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02
    trained_betas: list[float] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    # Rectified flow instead of β.
    use_flow_sigmas: bool = False
    flow_shift: Shift | None = 1.0
    # Not supported: only the neutral values are accepted.
    predict_epsilon: Literal[True] = True  # before there was a prediction_type
    timestep_type: Literal["discrete"] = "discrete"
    use_dynamic_shifting: Literal[False] = False

    @field_validator("trained_betas", mode="before")
    @classmethod
    def _all_betas(cls, given: object) -> object:
        """Checks all at once: one error for each of very many values takes much memory."""
        betas = cast("list[object]", given) if isinstance(given, list) else []
        if not all(isinstance(beta, float) and 0 < beta < 1 for beta in betas):
            raise ValueError("every β has to be a number between 0 and 1")
        return given

    def read(self) -> tuple[Process, str]:
        if self.use_flow_sigmas:
            ours = {theirs: name for name, theirs in FLOW_PREDICTIONS.items()}
            if self.prediction_type not in ours:
                raise _unsupported("prediction_type", self.prediction_type, ours)
            process = Flow(self.flow_shift or 1.0, self.num_train_timesteps)
            return process, ours[self.prediction_type]
        if self.prediction_type not in PREDICTION_TYPES:
            raise _unsupported("prediction_type", self.prediction_type, PREDICTION_TYPES)
        if self.trained_betas is not None:
            if len(self.trained_betas) != self.num_train_timesteps:
                raise UndustError(
                    f"it has {len(self.trained_betas)} trained_betas for "
                    f"{self.num_train_timesteps} num_train_timesteps"
                )
            process = VP(torch.tensor(self.trained_betas, dtype=torch.float64))
        elif self.beta_schedule in BETA_SCHEDULES:
            build = DISCRETE[BETA_SCHEDULES[self.beta_schedule]]
            process = build(self.num_train_timesteps, self.beta_start, self.beta_end)
        else:
            raise _unsupported("beta_schedule", self.beta_schedule, BETA_SCHEDULES)
        if self.rescale_betas_zero_snr:
            process = zero_terminal_snr(process)
        sigmas = process.sigmas
        rising = (sigmas.diff(prepend=sigmas.new_zeros(1)) > 0).all() and sigmas.isfinite().all()
        if not bool(rising):
            raise UndustError("it has betas that are too small or too large to distinguish steps")
        return process, self.prediction_type


class _Continuous(_Discrete):
    """EDM's process of pictures of deviation 1, as Stable Video Diffusion's; β play no part."""

    timestep_type: str = CONTINUOUS  # pyright: ignore[reportIncompatibleVariableOverride]
    sigma_min: Sigma
    sigma_max: Sigma

    def read(self) -> tuple[Process, str]:
        if self.prediction_type not in ("v_prediction",):
            raise _unsupported("prediction_type", self.prediction_type, ["v_prediction"])
        if self.sigma_min >= self.sigma_max:
            raise UndustError(f"sigma_min = {self.sigma_min} is not below {self.sigma_max}")
        return EDM(self.sigma_min, self.sigma_max, 1.0), self.prediction_type


class _Karras(_Discrete):
    beta_start: Beta = 0.00085
    beta_end: Beta = 0.012


class _Consistency(_Karras):
    beta_schedule: str = "scaled_linear"


class _Flow(_Config):
    num_train_timesteps: Steps = 1000
    shift: Shift = 1.0
    # As above: a shift by the size of the picture, and networks with reversed time.
    use_dynamic_shifting: Literal[False] = False
    invert_sigmas: Literal[False] = False

    def read(self) -> tuple[Process, str]:
        return Flow(self.shift, self.num_train_timesteps), "flow"


class _EDM(_Config):
    sigma_min: Sigma = 0.002
    sigma_max: Sigma = 80.0
    sigma_data: Sigma = 0.5
    prediction_type: str = "epsilon"

    def read(self) -> tuple[Process, str]:
        ours = {theirs: name for name, theirs in EDM_PREDICTIONS.items()}
        if self.prediction_type not in ours:
            raise _unsupported("prediction_type", self.prediction_type, ours)
        if self.sigma_min >= self.sigma_max:
            raise UndustError(f"sigma_min = {self.sigma_min} is not below {self.sigma_max}")
        process = EDM(self.sigma_min, self.sigma_max, self.sigma_data)
        return process, ours[self.prediction_type]


class _Own(_Config):
    process: Literal["vp", "sub-vp", "ve", "edm", "flow"]
    arguments: dict[str, Sigma]
    prediction_type: str

    def read(self) -> tuple[Process, str]:
        kind = PROCESSES[self.process]
        unknown = self.arguments.keys() - inspect.signature(kind).parameters.keys()
        if unknown:
            raise UndustError(f"{quoted(min(unknown))} is not an argument of {self.process}")
        steps = self.arguments.get("steps", 1000)
        if steps != int(steps) or not 2 <= steps <= MAX_STEPS:
            raise UndustError(f"steps = {steps:g} is not a number of time steps")
        whole = {"steps": int(steps)} if "steps" in self.arguments else {}
        return kind(**{**self.arguments, **whole}), self.prediction_type


SCHEDULERS: dict[str, type[_Config]] = {
    **dict.fromkeys(CLASSES, _Discrete),
    **dict.fromkeys(KARRAS_CLASSES, _Karras),
    **dict.fromkeys(CONSISTENCY_CLASSES, _Consistency),
    **dict.fromkeys(FLOW_CLASSES, _Flow),
    **dict.fromkeys(EDM_CLASSES, _EDM),
    OWN_CLASS: _Own,
}


def read_scheduler(fields: Mapping[str, Any], where: object) -> tuple[Process, str]:
    """The process, and the prediction's name, in a parsed scheduler_config.json of `where`.

    Raises UndustError, naming the field, for what cannot be represented, and for a prediction that
    the process leaves without meaning.
    """
    limit_entries(str(where), fields)
    name = fields.get("_class_name")
    kind = SCHEDULERS.get(name) if isinstance(name, str) else None
    if name == "EulerDiscreteScheduler" and fields.get("timestep_type") == CONTINUOUS:
        kind = _Continuous
    try:
        if kind is None:
            raise _unsupported("_class_name", name, SCHEDULERS)
        if fields.get("use_flow_sigmas") and name not in FLOW_SIGMAS:
            raise UndustError(f"use_flow_sigmas: only supported for {', '.join(FLOW_SIGMAS)}")
        known = {
            key: value
            for key, value in fields.items()
            if key in kind.model_fields or not (key in SAMPLING or key.startswith("_"))
        }
        process, prediction = kind.model_validate(known).read()
        prediction_on(process, prediction)
    except ValidationError as error:
        fault = error.errors()[0]
        field = printable(fault["loc"][0]) if fault["loc"] else "the name of a field"
        raise UndustError(
            f"{where} ({name}) is not supported: {field} = {quoted(fault['input'])}: "
            f"{demand(fault)}"
        ) from error
    except UndustError as error:
        raise UndustError(f"{where} is not supported: {error}") from error
    return process, prediction


def scheduler_config(process: Process, prediction: str) -> dict[str, Any]:
    """The scheduler_config.json of a model.

    A discrete process is diffusers' DDIM, which then samples as `leading` + `ddim` do; betas that
    no schedule gives are written one by one. Rectified flow is its DPM-Solver++ of order 1, which
    is Euler's method, at about the levels of `trailing`. Continuous processes and their predictions
    that diffusers does not know are written under a class name of ours. Raises UndustError for
    another prediction of a discrete process, and for a process that is not registered.
    """
    # Errors are raised here and not when the file is loaded.
    if isinstance(process, VP):
        if prediction not in PREDICTION_TYPES:
            raise _unsupported("prediction_type", prediction, PREDICTION_TYPES)
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
    if isinstance(process, Flow) and prediction in FLOW_PREDICTIONS:
        return {
            "_class_name": FLOW_SIGMAS[0],
            "num_train_timesteps": process.steps,
            "use_flow_sigmas": True,
            "flow_shift": process.shift,
            "prediction_type": FLOW_PREDICTIONS[prediction],
            "solver_order": 1,
            "steps_offset": 1,  # of no effect, but the pipelines warn of others
        }
    if isinstance(process, EDM) and prediction in EDM_PREDICTIONS:
        return {
            "_class_name": EDM_CLASSES[0],
            "sigma_min": process.lowest,
            "sigma_max": process.highest,
            "sigma_data": process.sigma_data,
            "prediction_type": EDM_PREDICTIONS[prediction],
        }
    for name, kind in PROCESSES.items():
        if type(process) is kind:
            return {
                "_class_name": OWN_CLASS,
                "process": name,
                "arguments": asdict(cast(Any, process)),
                "prediction_type": prediction,
            }
    raise UndustError(f"the process {type(process).__name__} cannot be saved")


def continuous_config(process: Process, prediction: str) -> dict[str, Any]:
    """The scheduler_config.json of a model of films, as Stable Video Diffusion's.

    Raises UndustError for another process than EDM's for a deviation of 1, with its v-prediction:
    diffusers' pipeline samples no other.
    """
    if not isinstance(process, EDM) or process.sigma_data != 1 or prediction != "v_prediction":
        raise UndustError("models of films have EDM with sigma_data = 1 and v_prediction")
    return {
        "_class_name": "EulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "sigma_max": process.highest,
        "sigma_min": process.lowest,
        "timestep_spacing": "leading",
        "timestep_type": CONTINUOUS,
        "use_karras_sigmas": True,
    }


def _betas(process: VP) -> dict[str, Any]:
    # Twelve digits: squaring the root of 0.00085 gives 0.0008499999999999999.
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


def _unsupported(field: str, value: object, known: Iterable[str]) -> UndustError:
    return UndustError(f"{field} = {quoted(value)}; supported: {', '.join(known)}")
